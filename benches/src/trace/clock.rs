//! Times as logs have them, in nanoseconds.

/// Nanoseconds of a second.
const SECOND: u64 = 1_000_000_000;

/// Nanoseconds of a day.
pub(super) const DAY: u64 = 86_400 * SECOND;

/// Days from the year 0 to a day in 1998: in nanoseconds, what is left fits.
const EPOCH: u64 = 730_000;

/// `12.003`: seconds with a fraction.
pub(super) fn seconds(text: &str) -> Option<u64> {
    let (whole, fraction) = text.split_once('.')?;
    let digits = fraction.len();
    if digits == 0 || digits > 9 || !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let nanos = fraction.parse::<u64>().ok()? * 10_u64.pow(9 - digits as u32);
    whole.parse::<u64>().ok()?.checked_mul(SECOND)?.checked_add(nanos)
}

/// `12:34:56`, with or without a fraction.
pub(super) fn time_of_day(text: &str) -> Option<u64> {
    let mut parts = text.splitn(3, ':');
    let mut below = |limit| parts.next()?.parse().ok().filter(|part: &u64| *part < limit);
    let minutes = below(24)? * 60 + below(60)?;
    let last = parts.next()?;
    let nanos = seconds(last).or_else(|| last.parse::<u64>().ok()?.checked_mul(SECOND))?;
    // A leap second is the 60th.
    (nanos <= 60 * SECOND).then_some(minutes * 60 * SECOND + nanos)
}

/// `2025-08-29T12:34:56.123456Z`.
pub(super) fn iso8601(text: &str) -> Option<u64> {
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let mut date = date.splitn(3, '-').map(str::parse::<u64>);
    let (year, month, day) = (date.next()?.ok()?, date.next()?.ok()?, date.next()?.ok()?);
    if !(1..10_000).contains(&year) || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    // Years from March on: the leap day is the last one of a year.
    let (year, month) = if month < 3 { (year - 1, month + 9) } else { (year, month - 3) };
    let days = year * 365 + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day;
    days.checked_sub(EPOCH)?.checked_mul(DAY)?.checked_add(time_of_day(time)?)
}

//! What the script of a run says: lines `VMM NAME WHAT VALUE ...`.

use super::counts::hexadecimal;
use super::table::Measured;

/// Puts what `lines` say of the run `name` into `row`.
pub(super) fn read(row: &mut Measured, name: &str, lines: &[String]) {
    for line in lines {
        let words: Vec<&str> = line.split_whitespace().collect();
        let ["VMM", of, rest @ ..] = &words[..] else { continue };
        if *of != name {
            continue;
        }
        match rest {
            ["ioctl", request, times] => {
                if let (Some(request), Ok(times)) = (hexadecimal(request), times.parse()) {
                    row.counts.add(request, times);
                }
            }
            ["grace", number] => row.grace_periods = number.parse().ok(),
            ["up", number] => row.up = hundredths(number),
            ["done", number] => row.done = hundredths(number),
            ["lost", number] if *number != "0" => row.notes.push(format!("{number} records lost")),
            ["exits", number] if *number != "0" => row.notes.push(format!("{number} kicks exited")),
            ["note", words @ ..] => row.notes.push(words.join(" ")),
            ["failed", words @ ..] => row.failed = Some(words.join(" ")),
            _ => {}
        }
    }
}

fn hundredths(number: &str) -> Option<f64> {
    number.parse::<f64>().ok().map(|hundredths| hundredths / 100.0)
}

#[cfg(test)]
mod tests {
    use super::super::counts::Kind;
    use super::super::which::{Kernel, Way};
    use super::*;

    #[test]
    fn what_the_script_says() {
        let said = "booting\nVMM today up 1234\nVMM today ioctl 0x4040ae79 56\n\
                    VMM ours ioctl 0x4040ae79 7\nVMM today grace 99\nVMM today lost 0\n\
                    VMM today exits 0\nVMM ours exits 3\nVMM ours note 8 resets\n\
                    VMM ours failed not seen: it\n\
                    VMM today done 2000\nVMM today said VMM-GUEST done";
        let lines: Vec<String> = said.lines().map(str::to_owned).collect();
        let of = |way: Way| {
            let mut row = Measured::new(way, Kernel::Lab, "");
            read(&mut row, way.name(), &lines);
            row
        };
        let row = of(Way::Today);
        assert_eq!((row.up, row.done, row.grace_periods), (Some(12.34), Some(20.0), Some(99)));
        assert_eq!(row.counts.of(Kind::Ioeventfd), 56);
        assert!(row.notes.is_empty() && row.failure().is_none());
        let row = of(Way::Ours);
        assert_eq!(row.counts.of(Kind::Ioeventfd), 7);
        assert_eq!(row.notes, ["3 kicks exited", "8 resets"]);
        assert_eq!(row.failure().as_deref(), Some("lab, ours: not seen: it"));
    }
}

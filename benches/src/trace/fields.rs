//! The fields of a memslot call, by whatever names a log has for them.

use std::collections::HashMap;

use kvm_memslots_shim::uapi::{MemFlags, kvm_userspace_memory_region2};

use super::excerpt;

/// What a log calls address space, slot, flags, guest address, size, host address,
/// guest memory file, and offset in that.
pub(super) type Names = [&'static str; 8];

/// Values by name.
pub(super) struct Fields<'a>(HashMap<&'a str, &'a str>);

impl<'a> Fields<'a> {
    /// Of `name=value` and `name#value`.
    pub(super) fn new(words: impl Iterator<Item = &'a str>) -> Result<Self, String> {
        let mut fields = HashMap::new();
        for word in words {
            let field = word.split_once(['=', '#']);
            let (name, value) = field.ok_or_else(|| format!("{}?", excerpt(word)))?;
            if fields.insert(name, value).is_some() {
                return Err(format!("{name} twice"));
            }
        }
        Ok(Self(fields))
    }

    pub(super) fn get(&self, name: &str) -> Option<&'a str> {
        self.0.get(name).copied()
    }

    fn take(&mut self, name: &str) -> Result<u64, String> {
        let value = self.0.remove(name).ok_or_else(|| format!("no {name}"))?;
        number(value).ok_or_else(|| format!("{name} is not a number: {value}"))
    }

    fn narrow<T: TryFrom<u64>>(&mut self, name: &str) -> Result<T, String> {
        let value = self.take(name)?;
        let bits = 8 * size_of::<T>();
        T::try_from(value).map_err(|_| format!("{name} has {bits} bits, not {value:#x}"))
    }

    /// The argument of the call.
    pub(super) fn region(
        &mut self,
        [as_id, slot, flags, gpa, size, hva, memfd, offset]: &Names,
    ) -> Result<kvm_userspace_memory_region2, String> {
        let as_id: u16 = if self.0.contains_key(as_id) { self.narrow(as_id)? } else { 0 };
        let mut region = kvm_userspace_memory_region2 {
            slot: self.narrow::<u32>(slot)? | u32::from(as_id) << 16,
            flags: self.narrow(flags)?,
            guest_phys_addr: self.take(gpa)?,
            memory_size: self.take(size)?,
            userspace_addr: self.take(hva)?,
            ..Default::default()
        };
        if region.flags & MemFlags::GUEST_MEMFD.bits() != 0 {
            // Some print 64 bits of it.
            region.guest_memfd = self.take(memfd)? as u32;
            region.guest_memfd_offset = self.take(offset)?;
        }
        // Without the flag they mean nothing.
        self.0.remove(memfd);
        self.0.remove(offset);
        Ok(region)
    }

    /// All of QEMU's event: the argument, and what came of it.
    pub(super) fn event(
        mut self,
        names: &Names,
    ) -> Result<(kvm_userspace_memory_region2, i32), String> {
        // It prints these in hex: what has no 0x was cut.
        let mut hex = names[2..6].iter().filter_map(|name| Some((name, self.get(name)?)));
        if let Some((name, value)) = hex.find(|(_, value)| !value.starts_with("0x")) {
            return Err(format!("{name} is not a number: {value}"));
        }
        let region = self.region(names)?;
        let ret = (self.take("ret")? as u32).cast_signed();
        match self.0.keys().next() {
            None => Ok((region, ret)),
            Some(name) => Err(format!("what is {name}?")),
        }
    }
}

/// `0x1f`, `31`, `-31`, `KVM_MEM_READONLY|0x8`.
pub(super) fn number(value: &str) -> Option<u64> {
    let one = |word: &str| match word {
        "KVM_MEM_LOG_DIRTY_PAGES" => Some(MemFlags::LOG_DIRTY_PAGES.bits().into()),
        "KVM_MEM_READONLY" => Some(MemFlags::READONLY.bits().into()),
        "KVM_MEM_GUEST_MEMFD" => Some(MemFlags::GUEST_MEMFD.bits().into()),
        _ => match word.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16).ok(),
            None => word.parse().ok().or_else(|| word.parse().map(i64::cast_unsigned).ok()),
        },
    };
    value.split('|').try_fold(0, |all, word| Some(all | one(word)?))
}

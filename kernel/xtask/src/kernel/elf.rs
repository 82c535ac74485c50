//! Whether a file can run in a guest that has no libraries.

use super::target::Arch;

/// Why a file can't run in the guest.
#[derive(Debug, PartialEq)]
pub(super) enum Unfit {
    NotAProgram,
    OtherArchitecture { machine: u16 },
    Dynamic,
}

/// `p_type` of the program header that names the dynamic linker.
const PT_INTERP: u32 = 3;

/// Whether `file` is a script, or a static program for `arch`.
pub(super) fn check(file: &[u8], arch: Arch) -> Result<(), Unfit> {
    if file.starts_with(b"#!") {
        return Ok(());
    }
    // Both architectures are 64 bits wide and little-endian.
    if !file.starts_with(b"\x7fELF\x02\x01") {
        return Err(Unfit::NotAProgram);
    }
    let machine = u16::from_le_bytes(at(file, 18)?);
    if machine != arch.elf_machine() {
        return Err(Unfit::OtherArchitecture { machine });
    }
    let headers = u64::from_le_bytes(at(file, 32)?);
    let headers = usize::try_from(headers).map_err(|_| Unfit::NotAProgram)?;
    let size = usize::from(u16::from_le_bytes(at(file, 54)?));
    let count = usize::from(u16::from_le_bytes(at(file, 56)?));
    for header in 0..count {
        let offset = headers.checked_add(header * size).ok_or(Unfit::NotAProgram)?;
        if u32::from_le_bytes(at(file, offset)?) == PT_INTERP {
            return Err(Unfit::Dynamic);
        }
    }
    Ok(())
}

fn at<const N: usize>(file: &[u8], offset: usize) -> Result<[u8; N], Unfit> {
    let bytes = file.get(offset..).and_then(|rest| rest.first_chunk());
    bytes.copied().ok_or(Unfit::NotAProgram)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// An ELF file with a header of each of `types`.
    fn elf(machine: u16, types: &[u32]) -> Vec<u8> {
        let mut file = vec![0; 64];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        file[18..20].copy_from_slice(&machine.to_le_bytes());
        file[32] = 64;
        file[54] = 56;
        file[56] = u8::try_from(types.len()).unwrap();
        for p_type in types {
            let mut header = [0; 56];
            header[..4].copy_from_slice(&p_type.to_le_bytes());
            file.extend(header);
        }
        file
    }

    #[test]
    fn programs() {
        assert_eq!(check(&elf(62, &[1, 1, 2]), Arch::X86_64), Ok(()));
        assert_eq!(check(&elf(62, &[6, 3, 1]), Arch::X86_64), Err(Unfit::Dynamic));
        let other = Unfit::OtherArchitecture { machine: 62 };
        assert_eq!(check(&elf(62, &[1]), Arch::Arm64), Err(other));
        assert_eq!(check(b"#!/bin/sh\n", Arch::Arm64), Ok(()));
    }

    #[test]
    fn what_is_no_program() {
        assert_eq!(check(b"", Arch::X86_64), Err(Unfit::NotAProgram));
        assert_eq!(check(b"text", Arch::X86_64), Err(Unfit::NotAProgram));
        let whole = elf(62, &[1, 1]);
        assert_eq!(check(&whole[..64], Arch::X86_64), Err(Unfit::NotAProgram));
        let mut far = whole;
        far[32..40].fill(0xff);
        assert_eq!(check(&far, Arch::X86_64), Err(Unfit::NotAProgram));
    }
}

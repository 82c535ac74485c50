//! A file system for a kernel that has nothing else: one program, which says
//! hello and switches the power off.

/// Where the program is linked to, with its headers.
const AT: u64 = 0x40_0000;
const HEADERS: u64 = 64 + 56;

/// What it writes to the console.
pub const HELLO: &str = "hello from user space\n";

/// ```asm
/// mov eax, 1                  ; write(1, hello, 22)
/// mov edi, 1
/// lea rsi, [rip + hello]
/// mov edx, 22
/// syscall
/// mov eax, 169                ; reboot(..., LINUX_REBOOT_CMD_POWER_OFF)
/// mov edi, 0xfee1dead
/// mov esi, 672274793
/// mov edx, 0x4321fedc
/// syscall
/// jmp .
/// ```
const CODE: [u8; 48] = [
    0xb8, 0x01, 0x00, 0x00, 0x00, 0xbf, 0x01, 0x00, 0x00, 0x00, 0x48, 0x8d, 0x35, 0x1f, 0x00, 0x00,
    0x00, 0xba, 0x16, 0x00, 0x00, 0x00, 0x0f, 0x05, 0xb8, 0xa9, 0x00, 0x00, 0x00, 0xbf, 0xad, 0xde,
    0xe1, 0xfe, 0xbe, 0x69, 0x19, 0x12, 0x28, 0xba, 0xdc, 0xfe, 0x21, 0x43, 0x0f, 0x05, 0xeb, 0xfe,
];

/// A static ELF program of one segment.
fn program() -> Vec<u8> {
    let size = HEADERS + (CODE.len() + HELLO.len()) as u64;
    let mut elf = Vec::from(*b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    // ET_EXEC, EM_X86_64, version; the sizes of headers, and how many there are.
    elf.extend([2_u16, 62].iter().flat_map(|half| half.to_le_bytes()));
    elf.extend(1_u32.to_le_bytes());
    elf.extend([AT + HEADERS, 64, 0].iter().flat_map(|long| long.to_le_bytes()));
    elf.extend(0_u32.to_le_bytes());
    elf.extend([64_u16, 56, 1, 64, 0, 0].iter().flat_map(|half| half.to_le_bytes()));
    // PT_LOAD, to be read and executed.
    elf.extend([1_u32, 5].iter().flat_map(|word| word.to_le_bytes()));
    elf.extend([0, AT, AT, size, size, 0x1000].iter().flat_map(|long| long.to_le_bytes()));
    elf.extend(CODE);
    elf.extend(HELLO.as_bytes());
    elf
}

/// The archive that the kernel unpacks (cpio, "newc").
#[must_use]
pub fn initrd() -> Vec<u8> {
    const FILE: u32 = 0o100_755;
    let mut archive = Vec::new();
    for (name, mode, content) in [("init", FILE, program()), ("TRAILER!!!", 0, Vec::new())] {
        let (length, size) = (name.len() as u32 + 1, content.len() as u32);
        archive.extend(b"070701");
        for field in [0, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, length, 0] {
            archive.extend(format!("{field:08x}").bytes());
        }
        archive.extend(name.bytes());
        archive.push(0);
        archive.resize(archive.len().next_multiple_of(4), 0);
        archive.extend(content);
        archive.resize(archive.len().next_multiple_of(4), 0);
    }
    archive
}

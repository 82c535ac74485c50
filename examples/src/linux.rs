//! A kernel in guest memory, as the 64-bit boot protocol of Linux wants it.

use std::fs::File;
use std::sync::Arc;

use linux_loader::cmdline::Cmdline;
use linux_loader::configurator::linux::LinuxBootConfigurator;
use linux_loader::configurator::{BootConfigurator as _, BootParams};
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::loader::{Elf, KernelLoader as _, bzimage::BzImage, load_cmdline};
use vm_memory::GuestRegionMmap;
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryMmap, GuestMemoryRegion as _};

use crate::Result;

/// What `rsi` holds at the kernel's entry.
pub const ZERO_PAGE: GuestAddress = GuestAddress(0x7000);
const COMMAND_LINE: GuestAddress = GuestAddress(0x2_0000);
/// Where a PC's low memory ends, and what can hold a kernel begins.
const LOW_END: u64 = 0x9_fc00;
const HIGH: u64 = 1 << 20;

/// Loads `kernel`, a bzImage or a vmlinux, and what it is to find into `ram`, which
/// begins at guest physical address 0. `line` is its command line. Where it begins.
///
/// # Errors
/// If it is no kernel, or there is too little memory.
pub fn load(
    ram: &Arc<GuestRegionMmap>,
    kernel: &mut File,
    initrd: &[u8],
    line: &str,
) -> Result<u64> {
    let memory = GuestMemoryMmap::from_arc_regions(vec![Arc::clone(ram)])?;
    let high = Some(GuestAddress(HIGH));
    let (header, entry) = if let Ok(loaded) = Elf::load(&memory, None, kernel, high) {
        // What the header of a bzImage says.
        let header = setup_header { header: 0x5372_6448, boot_flag: 0xaa55, ..Default::default() };
        (header, loaded.kernel_load.0)
    } else {
        let loaded = BzImage::load(&memory, None, kernel, high)?;
        // Behind the entry for 32 bits.
        (loaded.setup_header.ok_or("a bzImage without a header")?, loaded.kernel_load.0 + 0x200)
    };
    let mut words = Cmdline::new(1024)?;
    words.insert_str(line)?;
    load_cmdline(&memory, COMMAND_LINE, &words)?;
    let size = initrd.len() as u64;
    let archive = ram.len().checked_sub(size).ok_or("an initrd larger than memory")? & !0xfff;
    memory.write_slice(initrd, GuestAddress(archive))?;

    let mut params = boot_params {
        hdr: setup_header {
            // No loader with a number.
            type_of_loader: 0xff,
            cmd_line_ptr: COMMAND_LINE.0 as u32,
            ramdisk_image: archive as u32,
            ramdisk_size: size as u32,
            ..header
        },
        e820_entries: 2,
        ..Default::default()
    };
    let usable = |addr, end| boot_e820_entry { addr, size: end - addr, r#type: 1 };
    params.e820_table[0] = usable(0, LOW_END);
    params.e820_table[1] = usable(HIGH, ram.len());
    LinuxBootConfigurator::write_bootparams(&BootParams::new(&params, ZERO_PAGE), &memory)?;
    Ok(entry)
}

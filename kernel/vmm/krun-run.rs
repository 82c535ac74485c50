//! Starts a kernel in libkrun: krun-run VMLINUX INITRD CMDLINE SHARE...
//! The first serial port is stdout.

use std::env;
use std::ffi::CString;
use std::process::exit;

const MEMORY: u32 = 512;
/// In bytes, of each share: memory that the guest maps.
const DAX: u64 = 8 << 20;
/// An uncompressed one.
const ELF: u32 = 1;

fn checked(what: &str, done: i32) -> i32 {
    if done < 0 {
        eprintln!("krun-run: {what}: {done}");
        exit(1);
    }
    done
}

fn main() {
    let words = env::args().skip(1).map(|word| CString::new(word).expect("no NUL is in a word"));
    let words: Vec<CString> = words.collect();
    let [kernel, initrd, cmdline, shares @ ..] = &words[..] else {
        eprintln!("krun-run VMLINUX INITRD CMDLINE SHARE...");
        exit(2);
    };
    let context = checked("krun_create_ctx", krun::krun_create_ctx()) as u32;
    checked("krun_set_vm_config", krun::krun_set_vm_config(context, 1, MEMORY));
    // SAFETY: each pointer is to a string that is there until the end.
    unsafe {
        let (kernel, initrd, cmdline) = (kernel.as_ptr(), initrd.as_ptr(), cmdline.as_ptr());
        checked("kernel", krun::krun_set_kernel(context, kernel, ELF, initrd, cmdline));
        for (i, share) in shares.iter().enumerate() {
            let tag = CString::new(format!("share{i}")).expect("no NUL is in a tag");
            let added = krun::krun_add_virtiofs2(context, tag.as_ptr(), share.as_ptr(), DAX);
            checked("krun_add_virtiofs2", added);
        }
        checked("implicit console", krun::krun_disable_implicit_console(context));
        checked("serial", krun::krun_add_serial_console_default(context, 0, 1));
    }
    // Of a guest that ends, so does the process.
    checked("krun_start_enter", krun::krun_start_enter(context));
}

// A user of the installed library in Rust, over what bindgen made of retnet.h.
#![allow(non_camel_case_types, non_upper_case_globals, dead_code)]
include!(concat!(env!("BINDINGS"), "/retnet.rs"));

use std::ffi::{CStr, CString};

fn main() {
    let path = CString::new(std::env::args().nth(1).unwrap()).unwrap();
    let mut model: *mut retnet_model = std::ptr::null_mut();
    unsafe {
        let mut error: retnet_error = std::mem::zeroed();
        let status = retnet_model_open(path.as_ptr(), 0, &mut model, &mut error);
        let version = CStr::from_ptr(retnet_version()).to_str().unwrap();
        let message = CStr::from_ptr(error.message.as_ptr()).to_str().unwrap();
        println!("{} {} {}", version, status as i32, message);
        retnet_model_close(model);
    }
}

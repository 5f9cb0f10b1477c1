//! How many regions a process may have: alone in its process, since it takes them all.
#![cfg(target_os = "linux")]

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sira_shm::Region;

#[test]
fn regions_leave_descriptors_for_the_rest() {
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: Some(400), maximum }).unwrap();
    let mut sealed: Vec<_> = (0..50).map(|_| Region::create(1).unwrap().seal().map_err(|(_, error)| error).unwrap()).collect();
    let filling: Vec<_> = (0..50).map(|_| Region::create(1).unwrap()).collect();
    let error = Region::create(1).unwrap_err();
    assert!(error.to_string().starts_with("100 tensors are in such memory"), "{error}");
    sealed.pop();
    let another = Region::create(1).unwrap();
    assert!(Region::create(1).is_err());
    drop((sealed, filling, another));
    assert!(Region::create(1).is_ok());
}

//! What is shown on a tiny guest before anything depends on it.

use kvm_ioctls::Kvm;
use lucos_vmm::config::Trapping;
use lucos_vmm::trap::{Means, Proof};

use crate::tiny::need_kvm;

#[test]
fn every_way_is_proven_on_a_real_host() {
    need_kvm();
    let kvm = Kvm::new().unwrap();
    for (trapping, second_view) in
        [(Trapping::Best, true), (Trapping::SecondView, true), (Trapping::HoldAll, false)]
    {
        let proof = Proof::of(&kvm, trapping);
        assert_eq!(proof.failed(), [], "{trapping}: {proof}");
        assert_eq!(proof.means(), Ok(Means { second_view, blocks_interrupts: true }), "{trapping}");
    }
}

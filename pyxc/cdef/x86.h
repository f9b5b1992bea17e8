/* What only x86 has; see xen.h. */
int pyxc_vcpu_get_extended(xc_interface *xch, uint32_t domid, uint32_t vcpu, void *buffer, uint32_t *size);
int pyxc_vcpu_set_extended(xc_interface *xch, uint32_t domid, const void *buffer, uint32_t size);
int pyxc_vcpu_get_xsave(xc_interface *xch, uint32_t domid, uint32_t vcpu, void *out, uint64_t *size);
int pyxc_vcpu_set_xsave(xc_interface *xch, uint32_t domid, uint32_t vcpu, const void *in, uint64_t size);
int pyxc_vcpu_get_msrs(xc_interface *xch, uint32_t domid, uint32_t vcpu, void *out, uint64_t *size);
int pyxc_vcpu_set_msrs(xc_interface *xch, uint32_t domid, uint32_t vcpu, const void *in, uint64_t size);
int pyxc_pin_tables(xc_interface *xch, uint32_t domid, uint32_t nr, const uint8_t *levels,
                    const uint64_t *mfns);

size_t pyxc_cpuid_leaf_size(void);
size_t pyxc_msr_entry_size(void);
int pyxc_get_cpu_policy(xc_interface *xch, uint32_t domid, bool hvm, void *leaves, uint32_t *nr_leaves,
                        void *msrs, uint32_t *nr_msrs);
#define DOMID_INVALID ...
int pyxc_set_cpu_policy(xc_interface *xch, uint32_t domid, uint32_t nr_leaves, void *leaves,
                        uint32_t nr_msrs, void *msrs, uint32_t *err_leaf, uint32_t *err_subleaf,
                        uint32_t *err_msr);

struct pyxc_pv_layout {
    uint32_t shared_info_size, shinfo_vcpu_info, shinfo_vcpu_info_size, shinfo_vcpu_info_stride,
        vcpu_info_pending_sel, shinfo_evtchn_pending, shinfo_evtchn_mask, shinfo_evtchn_size,
        shinfo_arch, shinfo_arch_size, arch_max_pfn, arch_fll, arch_p2m_cr3, arch_p2m_vaddr,
        arch_p2m_generation;
    uint32_t ctx_size, ctx_flags, ctx_rdx, ctx_gdt_frames, ctx_nr_gdt_frames, ctx_gdt_ents, ctx_ctrlreg;
    uint32_t si_nr_pages, si_shared_info, si_flags, si_store_mfn, si_store_evtchn, si_console_mfn,
        si_console_evtchn;
};
void pyxc_pv_layout_x86_64(struct pyxc_pv_layout *out);

int xc_domain_get_pod_target(xc_interface *xch, uint32_t domid, uint64_t *tot_pages, uint64_t *pod_cache_pages,
                             uint64_t *pod_entries);

int xc_cpu_policy_get_size(xc_interface *xch, uint32_t *nr_leaves, uint32_t *nr_msrs);

#define XEN_X86_EMU_LAPIC ...
#define XEN_X86_EMU_ALL ...
#define XEN_X86_EMU_VPCI ...

/* Layouts that the x86 PV code reads out of guest pages, from Xen's own headers. */
#ifndef PYXC_SHIM_LAYOUT_X86_PV_H
#define PYXC_SHIM_LAYOUT_X86_PV_H

struct pyxc_pv_layout {
    uint32_t shared_info_size, shinfo_vcpu_info, shinfo_vcpu_info_size, shinfo_vcpu_info_stride,
        vcpu_info_pending_sel, shinfo_evtchn_pending, shinfo_evtchn_mask, shinfo_evtchn_size,
        shinfo_arch, shinfo_arch_size, arch_max_pfn, arch_fll, arch_p2m_cr3, arch_p2m_vaddr,
        arch_p2m_generation;
    uint32_t ctx_size, ctx_flags, ctx_rdx, ctx_gdt_frames, ctx_nr_gdt_frames, ctx_gdt_ents, ctx_ctrlreg;
    uint32_t si_nr_pages, si_shared_info, si_flags, si_store_mfn, si_store_evtchn, si_console_mfn,
        si_console_evtchn;
};

#define OFF(type, field) ((uint32_t)offsetof(type, field))

static void pyxc_pv_layout_x86_64(struct pyxc_pv_layout *out)
{
    typedef shared_info_x86_64_t shinfo;
    typedef vcpu_guest_context_x86_64_t ctx;
    typedef start_info_x86_64_t si;

    *out = (struct pyxc_pv_layout){
        .shared_info_size = sizeof(shinfo),
        .shinfo_vcpu_info = OFF(shinfo, vcpu_info),
        .shinfo_vcpu_info_size = sizeof(((shinfo *)0)->vcpu_info),
        .shinfo_vcpu_info_stride = sizeof(((shinfo *)0)->vcpu_info[0]),
        .vcpu_info_pending_sel = OFF(shinfo, vcpu_info[0].evtchn_pending_sel) - OFF(shinfo, vcpu_info[0]),
        .shinfo_evtchn_pending = OFF(shinfo, evtchn_pending),
        .shinfo_evtchn_mask = OFF(shinfo, evtchn_mask),
        .shinfo_evtchn_size = sizeof(((shinfo *)0)->evtchn_mask),
        .shinfo_arch = OFF(shinfo, arch),
        .shinfo_arch_size = sizeof(((shinfo *)0)->arch),
        .arch_max_pfn = OFF(shinfo, arch.max_pfn),
        .arch_fll = OFF(shinfo, arch.pfn_to_mfn_frame_list_list),
        .arch_p2m_cr3 = OFF(shinfo, arch.p2m_cr3),
        .arch_p2m_vaddr = OFF(shinfo, arch.p2m_vaddr),
        .arch_p2m_generation = OFF(shinfo, arch.p2m_generation),
        .ctx_size = sizeof(ctx),
        .ctx_flags = OFF(ctx, flags),
        .ctx_rdx = OFF(ctx, user_regs.rdx),
        .ctx_gdt_frames = OFF(ctx, gdt_frames),
        .ctx_nr_gdt_frames = sizeof(((ctx *)0)->gdt_frames) / sizeof(uint64_t),
        .ctx_gdt_ents = OFF(ctx, gdt_ents),
        .ctx_ctrlreg = OFF(ctx, ctrlreg),
        .si_nr_pages = OFF(si, nr_pages),
        .si_shared_info = OFF(si, shared_info),
        .si_flags = OFF(si, flags),
        .si_store_mfn = OFF(si, store_mfn),
        .si_store_evtchn = OFF(si, store_evtchn),
        .si_console_mfn = OFF(si, console.domU.mfn),
        .si_console_evtchn = OFF(si, console.domU.evtchn),
    };
}

#endif

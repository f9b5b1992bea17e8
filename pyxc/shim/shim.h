/*
 * What a C macro, a private prototype or a layout that differs between Xen releases would otherwise
 * hide from Python. Every function here is a thin wrapper: it fills one structure, makes one library
 * call and reports libxc's own return value with errno untouched. All policy lives in Python.
 */
#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <xenctrl.h>
#include <xenevtchn.h>
#include <xenforeignmemory.h>
#include <xenguest.h>
#include <xenstore.h>
#include <xentoollog.h>

#include <xen/foreign/x86_64.h>
#include <xen/hvm/params.h>
#include <xen/io/console.h>
#include <xen/memory.h>

#ifndef PYXC_BUILT_FOR
#define PYXC_BUILT_FOR "unknown"
#endif

/* Exported by libxenctrl, declared only in its private header (tools/libs/ctrl/xc_private.h). */
extern int xc_get_pfn_type_batch(xc_interface *xch, uint32_t dom, unsigned int num, xen_pfn_t *arr);

/* The hypercall takes at most 1,024 frames; this any number. arr[i] becomes the type of that frame. */
static int pyxc_page_types(xc_interface *xch, uint32_t domid, uint64_t num, xen_pfn_t *arr)
{
    uint64_t done;

    for ( done = 0; done < num; done += 1024 )
    {
        uint64_t left = num - done;
        int rc = xc_get_pfn_type_batch(xch, domid, left < 1024 ? (unsigned int)left : 1024, arr + done);

        if ( rc )
            return rc;
    }
    return 0;
}

/* ---- logging: libxc's messages become Python calls, already formatted -------------------------- */

static void pyxc_log_message(int level, int errnoval, char *context, char *text);

static void pyxc_vmessage(struct xentoollog_logger *logger, xentoollog_level level, int errnoval,
                          const char *context, const char *format, va_list al)
{
    char text[1024];
    int saved_errno = errno;

    (void)logger;
    vsnprintf(text, sizeof(text), format, al);
    pyxc_log_message((int)level, errnoval, (char *)(context ? context : ""), text);
    errno = saved_errno;
}

static void pyxc_no_progress(struct xentoollog_logger *logger, const char *context,
                             const char *doing_what, int percent, unsigned long done, unsigned long total)
{
    (void)logger; (void)context; (void)doing_what; (void)percent; (void)done; (void)total;
}

static void pyxc_logger_destroy(struct xentoollog_logger *logger) { (void)logger; }

static struct xentoollog_logger pyxc_logger_vtable = {
    .vmessage = pyxc_vmessage,
    .progress = pyxc_no_progress,
    .destroy = pyxc_logger_destroy,
};

static xentoollog_logger *pyxc_logger(void) { return &pyxc_logger_vtable; }

static const char *pyxc_built_for(void) { return PYXC_BUILT_FOR; }

/* ---- version and host -------------------------------------------------------------------------- */

static int pyxc_version(xc_interface *xch, uint32_t *major, uint32_t *minor, char *extra, char *caps)
{
    xen_extraversion_t extraversion = { 0 };
    xen_capabilities_info_t capabilities = { 0 };
    int version = xc_version(xch, XENVER_version, NULL);

    if ( version < 0 )
        return version;
    if ( xc_version(xch, XENVER_extraversion, &extraversion) < 0 )
        return -1;
    if ( xc_version(xch, XENVER_capabilities, &capabilities) < 0 )
        return -1;
    *major = (uint32_t)version >> 16;
    *minor = (uint32_t)version & 0xffff;
    snprintf(extra, 16, "%.15s", extraversion);
    snprintf(caps, 1024, "%.1023s", capabilities);
    return 0;
}

struct pyxc_host {
    uint64_t total_pages, free_pages, outstanding_pages, max_mfn;
    bool hvm, pv, hap, shadow;
};

static int pyxc_host_info(xc_interface *xch, struct pyxc_host *out)
{
    xc_physinfo_t info = { 0 };
    unsigned long max_page = 0;

    if ( xc_physinfo(xch, &info) )
        return -1;
    if ( xc_maximum_ram_page(xch, &max_page) )
        return -1;
    out->total_pages = info.total_pages;
    out->free_pages = info.free_pages;
    out->outstanding_pages = info.outstanding_pages;
    /* Despite its name, XENMEM_maximum_ram_page answers one more than the highest frame. */
    out->max_mfn = max_page - 1;
    out->hvm = info.capabilities & XEN_SYSCTL_PHYSCAP_hvm;
    out->pv = info.capabilities & XEN_SYSCTL_PHYSCAP_pv;
    out->hap = info.capabilities & XEN_SYSCTL_PHYSCAP_hap;
    out->shadow = info.capabilities & XEN_SYSCTL_PHYSCAP_shadow;
    return 0;
}

/* ---- domains ----------------------------------------------------------------------------------- */

struct pyxc_dominfo {
    uint32_t domid;
    bool dying, hvm, shutdown, paused, blocked, running, hap;
    uint32_t shutdown_reason;
    uint64_t tot_pages, max_pages, outstanding_pages, shared_info_frame;
    uint32_t nr_online_vcpus, max_vcpu_id, ssidref, cpupool;
    uint8_t handle[16];
};

/*
 * xc_domain_getinfo() (to 4.17) and xc_domain_getinfo_single() (from 4.18) exclude each other;
 * xc_domain_getinfolist() is in every release.
 */
static int pyxc_domain_list(xc_interface *xch, uint32_t first_domid, uint32_t max, struct pyxc_dominfo *out)
{
    xc_domaininfo_t *infos = calloc(max, sizeof(*infos));
    int i, n;

    if ( !infos )
        return -1;
    n = xc_domain_getinfolist(xch, first_domid, max, infos);
    for ( i = 0; i < n; ++i )
    {
        const xc_domaininfo_t *in = &infos[i];

        memset(&out[i], 0, sizeof(out[i]));
        out[i].domid = in->domain;
        out[i].dying = in->flags & XEN_DOMINF_dying;
        out[i].hvm = in->flags & XEN_DOMINF_hvm_guest;
        out[i].shutdown = in->flags & XEN_DOMINF_shutdown;
        out[i].paused = in->flags & XEN_DOMINF_paused;
        out[i].blocked = in->flags & XEN_DOMINF_blocked;
        out[i].running = in->flags & XEN_DOMINF_running;
        out[i].hap = in->flags & XEN_DOMINF_hap;
        out[i].shutdown_reason = (in->flags >> XEN_DOMINF_shutdownshift) & XEN_DOMINF_shutdownmask;
        out[i].tot_pages = in->tot_pages;
        out[i].max_pages = in->max_pages;
        out[i].outstanding_pages = in->outstanding_pages;
        out[i].shared_info_frame = in->shared_info_frame;
        out[i].nr_online_vcpus = in->nr_online_vcpus;
        out[i].max_vcpu_id = in->max_vcpu_id;
        out[i].ssidref = in->ssidref;
        out[i].cpupool = in->cpupool;
        memcpy(out[i].handle, in->handle, sizeof(out[i].handle));
    }
    {
        int saved_errno = errno;

        free(infos);
        errno = saved_errno;
    }
    return n;
}

struct pyxc_create {
    uint8_t handle[16];
    bool hvm, hap, nested_virt;
    uint32_t ssidref, max_vcpus, max_evtchn_port, max_grant_version, cpupool;
    int32_t max_grant_frames, max_maptrack_frames;
    uint32_t emulation_flags, misc_flags;
};

/* Effect: *domid is the new, empty, paused domain. Fields that a release does not know stay zero. */
static int pyxc_domain_create(xc_interface *xch, const struct pyxc_create *in, uint32_t *domid)
{
    struct xen_domctl_createdomain config = {
        .ssidref = in->ssidref,
        .flags = (in->hvm ? XEN_DOMCTL_CDF_hvm : 0) | (in->hap ? XEN_DOMCTL_CDF_hap : 0) |
                 (in->nested_virt ? XEN_DOMCTL_CDF_nested_virt : 0),
        .max_vcpus = in->max_vcpus,
        .max_evtchn_port = in->max_evtchn_port,
        .max_grant_frames = in->max_grant_frames,
        .max_maptrack_frames = in->max_maptrack_frames,
        .grant_opts = XEN_DOMCTL_GRANT_version(in->max_grant_version),
        .cpupool_id = in->cpupool,
#if defined(__i386__) || defined(__x86_64__)
        .arch = { .emulation_flags = in->emulation_flags, .misc_flags = in->misc_flags },
#endif
    };

    memcpy(config.handle, in->handle, sizeof(in->handle));
#ifdef DOMID_ANY
    *domid = DOMID_ANY; /* from 4.22 on, zero no longer means "choose one" */
#else
    *domid = 0;
#endif
    return xc_domain_create(xch, domid, &config);
}

/* ---- virtual CPUs (x86 PV) --------------------------------------------------------------------- */

static int pyxc_vcpu_online(xc_interface *xch, uint32_t domid, uint32_t vcpu, bool *online)
{
    xc_vcpuinfo_t info = { 0 };

    if ( xc_vcpu_getinfo(xch, domid, vcpu, &info) )
        return -1;
    *online = info.online;
    return 0;
}

static size_t pyxc_vcpu_context_size(void) { return sizeof(vcpu_guest_context_any_t); }

static int pyxc_vcpu_getcontext(xc_interface *xch, uint32_t domid, uint32_t vcpu, void *context)
{
    return xc_vcpu_getcontext(xch, domid, vcpu, context);
}

static int pyxc_vcpu_setcontext(xc_interface *xch, uint32_t domid, uint32_t vcpu, void *context)
{
    return xc_vcpu_setcontext(xch, domid, vcpu, context);
}

/* Effect: up to 128 bytes, counted from the start of the structure, in buffer; *size says how many. */
static int pyxc_vcpu_get_extended(xc_interface *xch, uint32_t domid, uint32_t vcpu, void *buffer, uint32_t *size)
{
    struct xen_domctl domctl = { .cmd = XEN_DOMCTL_get_ext_vcpucontext, .domain = domid };

    domctl.u.ext_vcpucontext.vcpu = vcpu;
    if ( xc_domctl(xch, &domctl) < 0 )
        return -1;
    *size = domctl.u.ext_vcpucontext.size;
    if ( *size > 128 )
    {
        errno = E2BIG;
        return -1;
    }
    memcpy(buffer, &domctl.u.ext_vcpucontext, *size);
    return 0;
}

static int pyxc_vcpu_set_extended(xc_interface *xch, uint32_t domid, const void *buffer, uint32_t size)
{
    struct xen_domctl domctl = { .cmd = XEN_DOMCTL_set_ext_vcpucontext, .domain = domid };

    if ( size > 128 )
    {
        errno = E2BIG;
        return -1;
    }
    memcpy(&domctl.u.ext_vcpucontext, buffer, size);
    return xc_domctl(xch, &domctl);
}

/* Called twice: with no buffer for the size, then with one. *size 0: this vCPU has no such state. */
static int pyxc_vcpu_get_xsave(xc_interface *xch, uint32_t domid, uint32_t vcpu, void *out, uint64_t *size)
{
    DECLARE_HYPERCALL_BUFFER(void, buffer);
    struct xen_domctl domctl = { .cmd = XEN_DOMCTL_getvcpuextstate, .domain = domid };
    int rc, saved_errno;

    domctl.u.vcpuextstate.vcpu = vcpu;
    rc = xc_domctl(xch, &domctl);
    if ( rc < 0 || !out || !domctl.u.vcpuextstate.xfeature_mask )
    {
        *size = rc < 0 || !domctl.u.vcpuextstate.xfeature_mask ? 0 : domctl.u.vcpuextstate.size;
        return rc;
    }
    if ( domctl.u.vcpuextstate.size > *size )
    {
        errno = ENOBUFS;
        return -1;
    }
    buffer = xc_hypercall_buffer_alloc(xch, buffer, domctl.u.vcpuextstate.size);
    if ( !buffer )
        return -1;
    set_xen_guest_handle(domctl.u.vcpuextstate.buffer, buffer);
    rc = xc_domctl(xch, &domctl);
    saved_errno = errno;
    if ( rc >= 0 )
    {
        *size = domctl.u.vcpuextstate.size;
        memcpy(out, buffer, *size);
    }
    xc_hypercall_buffer_free(xch, buffer);
    errno = saved_errno;
    return rc;
}

static int pyxc_vcpu_set_xsave(xc_interface *xch, uint32_t domid, uint32_t vcpu, const void *in, uint64_t size)
{
    DECLARE_HYPERCALL_BUFFER(void, buffer);
    struct xen_domctl domctl = { .cmd = XEN_DOMCTL_setvcpuextstate, .domain = domid };
    int rc, saved_errno;

    buffer = xc_hypercall_buffer_alloc(xch, buffer, size);
    if ( !buffer )
        return -1;
    memcpy(buffer, in, size);
    domctl.u.vcpuextstate.vcpu = vcpu;
    domctl.u.vcpuextstate.size = size;
    set_xen_guest_handle(domctl.u.vcpuextstate.buffer, buffer);
    rc = xc_domctl(xch, &domctl);
    saved_errno = errno;
    xc_hypercall_buffer_free(xch, buffer);
    errno = saved_errno;
    return rc;
}

/* Called twice, as for xsave; *size in bytes, a multiple of 16. */
static int pyxc_vcpu_get_msrs(xc_interface *xch, uint32_t domid, uint32_t vcpu, void *out, uint64_t *size)
{
    DECLARE_HYPERCALL_BUFFER(xen_domctl_vcpu_msr_t, buffer);
    struct xen_domctl domctl = { .cmd = XEN_DOMCTL_get_vcpu_msrs, .domain = domid };
    size_t wanted;
    int rc, saved_errno;

    domctl.u.vcpu_msrs.vcpu = vcpu;
    rc = xc_domctl(xch, &domctl);
    wanted = domctl.u.vcpu_msrs.msr_count * sizeof(xen_domctl_vcpu_msr_t);
    if ( rc < 0 || !out || !wanted )
    {
        *size = rc < 0 ? 0 : wanted;
        return rc;
    }
    if ( wanted > *size )
    {
        errno = ENOBUFS;
        return -1;
    }
    buffer = xc_hypercall_buffer_alloc(xch, buffer, wanted);
    if ( !buffer )
        return -1;
    set_xen_guest_handle(domctl.u.vcpu_msrs.msrs, buffer);
    rc = xc_domctl(xch, &domctl);
    saved_errno = errno;
    if ( rc >= 0 )
    {
        *size = domctl.u.vcpu_msrs.msr_count * sizeof(xen_domctl_vcpu_msr_t);
        memcpy(out, buffer, *size);
    }
    xc_hypercall_buffer_free(xch, buffer);
    errno = saved_errno;
    return rc;
}

static int pyxc_vcpu_set_msrs(xc_interface *xch, uint32_t domid, uint32_t vcpu, const void *in, uint64_t size)
{
    DECLARE_HYPERCALL_BUFFER(xen_domctl_vcpu_msr_t, buffer);
    struct xen_domctl domctl = { .cmd = XEN_DOMCTL_set_vcpu_msrs, .domain = domid };
    int rc, saved_errno;

    buffer = xc_hypercall_buffer_alloc(xch, buffer, size);
    if ( !buffer )
        return -1;
    memcpy(buffer, in, size);
    domctl.u.vcpu_msrs.vcpu = vcpu;
    domctl.u.vcpu_msrs.msr_count = size / sizeof(xen_domctl_vcpu_msr_t);
    set_xen_guest_handle(domctl.u.vcpu_msrs.msrs, buffer);
    rc = xc_domctl(xch, &domctl);
    saved_errno = errno;
    xc_hypercall_buffer_free(xch, buffer);
    errno = saved_errno;
    return rc;
}

/* types[i]: 1..4, the table level to pin mfns[i] as. At most 1024 a call. */
static int pyxc_pin_tables(xc_interface *xch, uint32_t domid, uint32_t nr, const uint8_t *levels,
                           const uint64_t *mfns)
{
    static const unsigned int pin_op[] = {
        0, MMUEXT_PIN_L1_TABLE, MMUEXT_PIN_L2_TABLE, MMUEXT_PIN_L3_TABLE, MMUEXT_PIN_L4_TABLE,
    };
    struct mmuext_op ops[1024];
    uint32_t i;

    if ( nr > 1024 )
    {
        errno = E2BIG;
        return -1;
    }
    memset(ops, 0, nr * sizeof(*ops));
    for ( i = 0; i < nr; ++i )
    {
        if ( levels[i] < 1 || levels[i] > 4 )
        {
            errno = EINVAL;
            return -1;
        }
        ops[i].cmd = pin_op[levels[i]];
        ops[i].arg1.mfn = mfns[i];
    }
    return xc_mmuext_op(xch, ops, nr, domid);
}

/* ---- log-dirty: the bitmap must lie in memory that a hypercall may write ------------------------ */

struct pyxc_dirty_bitmap {
    xc_hypercall_buffer_t hbuf;
    void *data;
    int nr_pages;
};

static struct pyxc_dirty_bitmap *pyxc_dirty_bitmap_new(xc_interface *xch, uint64_t nr_bits)
{
    DECLARE_HYPERCALL_BUFFER(void, data);
    struct pyxc_dirty_bitmap *bitmap = calloc(1, sizeof(*bitmap));

    if ( !bitmap )
        return NULL;
    bitmap->nr_pages = (int)((nr_bits + 8 * 4096 - 1) / (8 * 4096));
    data = xc_hypercall_buffer_alloc_pages(xch, data, bitmap->nr_pages);
    if ( !data )
    {
        free(bitmap);
        return NULL;
    }
    bitmap->hbuf = *HYPERCALL_BUFFER(data);
    bitmap->data = data;
    return bitmap;
}

static void pyxc_dirty_bitmap_free(xc_interface *xch, struct pyxc_dirty_bitmap *bitmap)
{
    xc__hypercall_buffer_free_pages(xch, &bitmap->hbuf, bitmap->nr_pages);
    free(bitmap);
}

static int pyxc_logdirty_enable(xc_interface *xch, uint32_t domid)
{
    return xc_shadow_control(xch, domid, XEN_DOMCTL_SHADOW_OP_ENABLE_LOGDIRTY, NULL, 0);
}

static int pyxc_logdirty_off(xc_interface *xch, uint32_t domid)
{
    return xc_shadow_control(xch, domid, XEN_DOMCTL_SHADOW_OP_OFF, NULL, 0);
}

/* Effect: the bitmap holds what was written since the last call, and the hypervisor's is cleared. */
static int64_t pyxc_logdirty_clean(xc_interface *xch, uint32_t domid, struct pyxc_dirty_bitmap *bitmap,
                                   uint64_t nr_pfns, bool final, uint32_t *dirty_count)
{
    xc_shadow_op_stats_t stats = { 0 };
    int64_t rc = xc_logdirty_control(xch, domid, XEN_DOMCTL_SHADOW_OP_CLEAN, &bitmap->hbuf, nr_pfns,
                                     final ? XEN_DOMCTL_SHADOW_LOGDIRTY_FINAL : 0, &stats);

    *dirty_count = stats.dirty_count;
    return rc;
}

/* ---- CPU policy -------------------------------------------------------------------------------- */

static size_t pyxc_cpuid_leaf_size(void) { return sizeof(xen_cpuid_leaf_t); }
static size_t pyxc_msr_entry_size(void) { return sizeof(xen_msr_entry_t); }

static int pyxc_get_cpu_policy(xc_interface *xch, uint32_t domid, void *leaves, uint32_t *nr_leaves,
                               void *msrs, uint32_t *nr_msrs)
{
    xc_cpu_policy_t *policy = xc_cpu_policy_init();
    int rc, saved_errno;

    if ( !policy )
        return -1;
    rc = xc_cpu_policy_get_domain(xch, domid, policy);
    if ( !rc )
        rc = xc_cpu_policy_serialise(xch, policy, leaves, nr_leaves, msrs, nr_msrs);
    saved_errno = errno;
    xc_cpu_policy_destroy(policy);
    errno = saved_errno;
    return rc;
}

static int pyxc_set_cpu_policy(xc_interface *xch, uint32_t domid, uint32_t nr_leaves, void *leaves,
                               uint32_t nr_msrs, void *msrs, uint32_t *err_leaf, uint32_t *err_subleaf,
                               uint32_t *err_msr)
{
    *err_leaf = *err_subleaf = *err_msr = ~0U;
    return xc_set_domain_cpu_policy(xch, domid, nr_leaves, leaves, nr_msrs, msrs, err_leaf, err_subleaf,
                                    err_msr);
}

/* ---- layouts that the x86 PV code reads out of guest pages, from Xen's own headers --------------- */

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

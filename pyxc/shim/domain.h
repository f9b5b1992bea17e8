/* Domains: listing and creating them. */
#ifndef PYXC_SHIM_DOMAIN_H
#define PYXC_SHIM_DOMAIN_H

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
    uint32_t nr_spis;
    uint8_t gic_version;
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
#elif defined(__aarch64__)
        .arch = { .gic_version = in->gic_version, .nr_spis = in->nr_spis },
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

#endif

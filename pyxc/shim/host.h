/* What Xen it is, and what the host has. */
#ifndef PYXC_SHIM_HOST_H
#define PYXC_SHIM_HOST_H

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

#endif

/* State of virtual CPUs of x86 PV domains beyond their context. */
#ifndef PYXC_SHIM_VCPU_X86_H
#define PYXC_SHIM_VCPU_X86_H

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

#endif

/* Virtual CPUs. */
#ifndef PYXC_SHIM_VCPU_H
#define PYXC_SHIM_VCPU_H

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

#endif

/* 64-bit ARM: contexts by register, and calls for which libxenctrl has no wrapper. */
#ifndef PYXC_SHIM_ARM64_H
#define PYXC_SHIM_ARM64_H

struct pyxc_arm64_context {
    uint64_t x[31];
    uint64_t pc, cpsr, spsr_el1, sp_el0, sp_el1, elr_el1;
    uint64_t sctlr_el1, tcr_el1, ttbr0_el1, ttbr1_el1;
    bool online;
};

static int pyxc_arm64_get_context(xc_interface *xch, uint32_t domid, uint32_t vcpu, struct pyxc_arm64_context *out)
{
    vcpu_guest_context_any_t any = { 0 };
    const vcpu_guest_context_t *in = &any.c;

    if ( xc_vcpu_getcontext(xch, domid, vcpu, &any) )
        return -1;
    /* x0 to x30 are 31 fields of 64 bits, one after the other. */
    memcpy(out->x, &in->user_regs.x0, sizeof(out->x));
    out->pc = in->user_regs.pc64;
    out->cpsr = in->user_regs.cpsr;
    out->spsr_el1 = in->user_regs.spsr_el1;
    out->sp_el0 = in->user_regs.sp_el0;
    out->sp_el1 = in->user_regs.sp_el1;
    out->elr_el1 = in->user_regs.elr_el1;
    out->sctlr_el1 = in->sctlr;
    out->tcr_el1 = in->ttbcr;
    out->ttbr0_el1 = in->ttbr0;
    out->ttbr1_el1 = in->ttbr1;
    out->online = in->flags & VGCF_online;
    return 0;
}

/* The registers of AArch32 modes, which share the structure, are kept as they are; a vCPU that never ran has none. */
static int pyxc_arm64_set_context(xc_interface *xch, uint32_t domid, uint32_t vcpu,
                                  const struct pyxc_arm64_context *in)
{
    vcpu_guest_context_any_t any = { 0 };
    vcpu_guest_context_t *out = &any.c;

    if ( xc_vcpu_getcontext(xch, domid, vcpu, &any) && errno != ENODATA )
        return -1;
    memcpy(&out->user_regs.x0, in->x, sizeof(in->x));
    out->user_regs.pc64 = in->pc;
    out->user_regs.cpsr = in->cpsr;
    out->user_regs.spsr_el1 = in->spsr_el1;
    out->user_regs.sp_el0 = in->sp_el0;
    out->user_regs.sp_el1 = in->sp_el1;
    out->user_regs.elr_el1 = in->elr_el1;
    out->sctlr = in->sctlr_el1;
    out->ttbcr = in->tcr_el1;
    out->ttbr0 = in->ttbr0_el1;
    out->ttbr1 = in->ttbr1_el1;
    out->flags = in->online ? VGCF_online : 0;
    return xc_vcpu_setcontext(xch, domid, vcpu, &any);
}

_Static_assert(offsetof(struct vcpu_guest_core_regs, x30) - offsetof(struct vcpu_guest_core_regs, x0) == 30 * 8,
               "x0 to x30 lie one after the other");

static int pyxc_arm64_set_address_size(xc_interface *xch, uint32_t domid, uint32_t bits)
{
    struct xen_domctl domctl = { .cmd = XEN_DOMCTL_set_address_size, .domain = domid };

    domctl.u.address_size.size = bits;
    return xc_domctl(xch, &domctl);
}

static int pyxc_arm64_set_host_time(xc_interface *xch, uint64_t seconds, uint32_t nanoseconds,
                                    uint64_t system_time_ns)
{
    xencall_handle *xcall = xc_interface_xcall_handle(xch);
    struct xen_platform_op *op = xencall_alloc_buffer(xcall, sizeof(*op));
    int rc, saved_errno;

    if ( !op )
        return -1;
    memset(op, 0, sizeof(*op));
    op->cmd = XENPF_settime64;
    op->interface_version = XENPF_INTERFACE_VERSION;
    op->u.settime64.secs = seconds;
    op->u.settime64.nsecs = nanoseconds;
    op->u.settime64.system_time = system_time_ns;
    rc = xencall1(xcall, __HYPERVISOR_platform_op, (unsigned long)op);
    saved_errno = errno;
    xencall_free_buffer(xcall, op);
    errno = saved_errno;
    return rc;
}

/* Of the processor this runs on, as Linux shows it to programs. */
static int pyxc_arm64_processor(uint64_t *midr, uint64_t *cntfrq)
{
    enum { HWCAP_CPUID_BIT = 1 << 11 }; /* asm/hwcap.h: the kernel answers programs that read ID registers */

    if ( !(getauxval(AT_HWCAP) & HWCAP_CPUID_BIT) )
    {
        errno = EOPNOTSUPP;
        return -1;
    }
    __asm__("mrs %0, midr_el1" : "=r"(*midr));
    __asm__("mrs %0, cntfrq_el0" : "=r"(*cntfrq));
    return 0;
}

#endif

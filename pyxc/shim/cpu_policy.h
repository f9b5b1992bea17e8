/* CPU policy of x86: CPUID leaves and MSRs. */
#ifndef PYXC_SHIM_CPU_POLICY_H
#define PYXC_SHIM_CPU_POLICY_H

static size_t pyxc_cpuid_leaf_size(void) { return sizeof(xen_cpuid_leaf_t); }
static size_t pyxc_msr_entry_size(void) { return sizeof(xen_msr_entry_t); }

/* Of a domain or, when domid is DOMID_INVALID, the most that this host can give to an HVM or PV domain. */
static int pyxc_get_cpu_policy(xc_interface *xch, uint32_t domid, bool hvm, void *leaves, uint32_t *nr_leaves,
                               void *msrs, uint32_t *nr_msrs)
{
    xc_cpu_policy_t *policy = xc_cpu_policy_init();
    int rc, saved_errno;

    if ( !policy )
        return -1;
    if ( domid == DOMID_INVALID )
        rc = xc_cpu_policy_get_system(
            xch, hvm ? XEN_SYSCTL_cpu_policy_hvm_max : XEN_SYSCTL_cpu_policy_pv_max, policy);
    else
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

#endif

/* Schedulers: whose a CPU pool is, and what a domain may use of its processors. */
#ifndef PYXC_SHIM_SCHEDULERS_H
#define PYXC_SHIM_SCHEDULERS_H

struct pyxc_cpupool {
    uint32_t sched_id, nr_cpus;
};

/* xc_cpupool_getinfo() answers with the next pool when there is none of this number: that is ENOENT here. */
static int pyxc_cpupool_info(xc_interface *xch, uint32_t poolid, struct pyxc_cpupool *out)
{
    xc_cpupoolinfo_t *info = xc_cpupool_getinfo(xch, poolid);
    int i, found, map_bytes;

    if ( !info )
        return -1;
    found = info->cpupool_id == poolid;
    out->sched_id = info->sched_id;
    out->nr_cpus = 0;
    map_bytes = info->cpumap ? xc_get_cpumap_size(xch) : 0;
    for ( i = 0; i < map_bytes; ++i )
        out->nr_cpus += __builtin_popcount(info->cpumap[i]);
    xc_cpupool_infofree(xch, info);
    if ( !found || map_bytes < 0 )
    {
        if ( !found )
            errno = ENOENT;
        return -1;
    }
    return 0;
}

struct pyxc_share {
    uint32_t weight, cap;
};

static int pyxc_credit2_get(xc_interface *xch, uint32_t domid, struct pyxc_share *out)
{
    struct xen_domctl_sched_credit2 sdom = { 0 };
    int rc = xc_sched_credit2_domain_get(xch, domid, &sdom);

    out->weight = sdom.weight;
    out->cap = sdom.cap;
    return rc;
}

static int pyxc_credit2_set(xc_interface *xch, uint32_t domid, const struct pyxc_share *in)
{
    struct xen_domctl_sched_credit2 sdom = { .weight = in->weight, .cap = in->cap };

    return xc_sched_credit2_domain_set(xch, domid, &sdom);
}

static int pyxc_credit_get(xc_interface *xch, uint32_t domid, struct pyxc_share *out)
{
    struct xen_domctl_sched_credit sdom = { 0 };
    int rc = xc_sched_credit_domain_get(xch, domid, &sdom);

    out->weight = sdom.weight;
    out->cap = sdom.cap;
    return rc;
}

static int pyxc_credit_set(xc_interface *xch, uint32_t domid, const struct pyxc_share *in)
{
    struct xen_domctl_sched_credit sdom = { .weight = in->weight, .cap = in->cap };

    return xc_sched_credit_domain_set(xch, domid, &sdom);
}

#endif

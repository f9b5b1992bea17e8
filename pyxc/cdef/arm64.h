/* What only 64-bit ARM has; see xen.h. */
typedef struct xencall_handle xencall_handle;

struct pyxc_arm64_context {
    uint64_t x[31];
    uint64_t pc, cpsr, spsr_el1, sp_el0, sp_el1, elr_el1;
    uint64_t sctlr_el1, tcr_el1, ttbr0_el1, ttbr1_el1;
    bool online;
};
int pyxc_arm64_get_context(xc_interface *xch, uint32_t domid, uint32_t vcpu, struct pyxc_arm64_context *out);
int pyxc_arm64_set_context(xc_interface *xch, uint32_t domid, uint32_t vcpu, const struct pyxc_arm64_context *in);
int pyxc_arm64_set_address_size(xc_interface *xch, uint32_t domid, uint32_t bits);
int pyxc_arm64_set_host_time(xc_interface *xch, uint64_t seconds, uint32_t nanoseconds, uint64_t system_time_ns);
int pyxc_arm64_processor(uint64_t *midr, uint64_t *cntfrq);

int xc_domain_cacheflush(xc_interface *xch, uint32_t domid, xen_pfn_t start_pfn, xen_pfn_t nr_pfns);
int xc_domain_add_to_physmap(xc_interface *xch, uint32_t domid, unsigned int space, unsigned long idx,
                             xen_pfn_t gpfn);
#define XENMAPSPACE_shared_info ...

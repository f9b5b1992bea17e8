/*
 * What pyxc uses of Xen's libraries, as cffi (API mode) reads it: the compiler checks every line
 * against the installed headers. "..." leaves a layout to the compiler. What only one architecture has is in
 * x86.h and arm64.h.
 */
typedef struct xc_interface_core xc_interface;
typedef struct xentoollog_logger xentoollog_logger;
typedef struct xenforeignmemory_handle xenforeignmemory_handle;
typedef struct xenforeignmemory_resource_handle xenforeignmemory_resource_handle;
typedef struct xenevtchn_handle xenevtchn_handle;
typedef uint64_t xen_pfn_t;
typedef uint32_t xs_transaction_t;

/* shim.h */
extern "Python" void pyxc_log_message(int level, int errnoval, char *context, char *text);
xentoollog_logger *pyxc_logger(void);
const char *pyxc_built_for(void);
int pyxc_version(xc_interface *xch, uint32_t *major, uint32_t *minor, char *extra, char *caps);

struct pyxc_host {
    uint64_t total_pages, free_pages, outstanding_pages, max_mfn;
    bool hvm, pv, hap, shadow;
};
int pyxc_host_info(xc_interface *xch, struct pyxc_host *out);

struct pyxc_dominfo {
    uint32_t domid;
    bool dying, hvm, shutdown, paused, blocked, running, hap;
    uint32_t shutdown_reason;
    uint64_t tot_pages, max_pages, outstanding_pages, shared_info_frame;
    uint32_t nr_online_vcpus, max_vcpu_id, ssidref, cpupool;
    uint8_t handle[16];
};
int pyxc_domain_list(xc_interface *xch, uint32_t first_domid, uint32_t max, struct pyxc_dominfo *out);

struct pyxc_create {
    uint8_t handle[16];
    bool hvm, hap, nested_virt;
    uint32_t ssidref, max_vcpus, max_evtchn_port, max_grant_version, cpupool;
    int32_t max_grant_frames, max_maptrack_frames;
    uint32_t emulation_flags, misc_flags;
    uint32_t nr_spis;
    uint8_t gic_version;
};
int pyxc_domain_create(xc_interface *xch, const struct pyxc_create *in, uint32_t *domid);

int pyxc_vcpu_online(xc_interface *xch, uint32_t domid, uint32_t vcpu, bool *online);
const char *pyxc_architecture(void);
size_t pyxc_vcpu_context_size(void);
int pyxc_vcpu_getcontext(xc_interface *xch, uint32_t domid, uint32_t vcpu, void *context);
int pyxc_vcpu_setcontext(xc_interface *xch, uint32_t domid, uint32_t vcpu, void *context);
struct pyxc_dirty_bitmap { void *data; int nr_pages; ...; };
struct pyxc_dirty_bitmap *pyxc_dirty_bitmap_new(xc_interface *xch, uint64_t nr_bits);
void pyxc_dirty_bitmap_free(xc_interface *xch, struct pyxc_dirty_bitmap *bitmap);
int pyxc_logdirty_enable(xc_interface *xch, uint32_t domid);
int pyxc_logdirty_off(xc_interface *xch, uint32_t domid);
int64_t pyxc_logdirty_clean(xc_interface *xch, uint32_t domid, struct pyxc_dirty_bitmap *bitmap,
                            uint64_t nr_pfns, bool final, uint32_t *dirty_count);

struct pyxc_cpupool { uint32_t sched_id, nr_cpus; };
int pyxc_cpupool_info(xc_interface *xch, uint32_t poolid, struct pyxc_cpupool *out);
struct pyxc_share { uint32_t weight, cap; };
int pyxc_credit2_get(xc_interface *xch, uint32_t domid, struct pyxc_share *out);
int pyxc_credit2_set(xc_interface *xch, uint32_t domid, const struct pyxc_share *in);
int pyxc_credit_get(xc_interface *xch, uint32_t domid, struct pyxc_share *out);
int pyxc_credit_set(xc_interface *xch, uint32_t domid, const struct pyxc_share *in);
#define XEN_SCHEDULER_CREDIT ...
#define XEN_SCHEDULER_CREDIT2 ...
#define XEN_SCHEDULER_ARINC653 ...
#define XEN_SCHEDULER_RTDS ...
#define XEN_SCHEDULER_NULL ...

/* xenctrl.h, xenguest.h */
xc_interface *xc_interface_open(xentoollog_logger *logger, xentoollog_logger *dombuild_logger,
                                unsigned open_flags);
int xc_interface_close(xc_interface *xch);
int xc_domain_max_vcpus(xc_interface *xch, uint32_t domid, unsigned int max);
int xc_domain_pause(xc_interface *xch, uint32_t domid);
int xc_domain_unpause(xc_interface *xch, uint32_t domid);
int xc_domain_destroy(xc_interface *xch, uint32_t domid);
int xc_domain_resume(xc_interface *xch, uint32_t domid, int fast);
int xc_domain_shutdown(xc_interface *xch, uint32_t domid, int reason);
int xc_domain_setmaxmem(xc_interface *xch, uint32_t domid, uint64_t max_memkb);
int xc_domain_claim_pages(xc_interface *xch, uint32_t domid, unsigned long nr_pages);
int xc_domain_set_memmap_limit(xc_interface *xch, uint32_t domid, unsigned long map_limitkb);
int xc_domain_get_guest_width(xc_interface *xch, uint32_t domid, unsigned int *guest_width);
int xc_domain_set_tsc_info(xc_interface *xch, uint32_t domid, uint32_t tsc_mode, uint64_t elapsed_nsec,
                           uint32_t gtsc_khz, uint32_t incarnation);
int xc_domain_get_tsc_info(xc_interface *xch, uint32_t domid, uint32_t *tsc_mode, uint64_t *elapsed_nsec,
                           uint32_t *gtsc_khz, uint32_t *incarnation);
int xc_set_paging_mempool_size(xc_interface *xch, uint32_t domid, uint64_t size);
int xc_evtchn_alloc_unbound(xc_interface *xch, uint32_t dom, uint32_t remote_dom);
int xc_domain_subscribe_for_suspend(xc_interface *xch, uint32_t domid, uint32_t port);

int pyxc_page_types(xc_interface *xch, uint32_t domid, uint64_t num, xen_pfn_t *arr);
int xc_domain_nr_gpfns(xc_interface *xch, uint32_t domid, xen_pfn_t *gpfns);
int xc_machphys_mfn_list(xc_interface *xch, unsigned long max_extents, xen_pfn_t *extent_start);
int xc_domain_populate_physmap_exact(xc_interface *xch, uint32_t domid, unsigned long nr_extents,
                                     unsigned int extent_order, unsigned int mem_flags,
                                     xen_pfn_t *extent_start);
int xc_domain_populate_physmap(xc_interface *xch, uint32_t domid, unsigned long nr_extents,
                               unsigned int extent_order, unsigned int mem_flags, xen_pfn_t *extent_start);
int xc_domain_decrease_reservation_exact(xc_interface *xch, uint32_t domid, unsigned long nr_extents,
                                         unsigned int extent_order, xen_pfn_t *extent_start);
int xc_clear_domain_pages(xc_interface *xch, uint32_t domid, unsigned long dst_pfn, int num);

int xc_hvm_param_set(xc_interface *xch, uint32_t dom, uint32_t param, uint64_t value);
int xc_hvm_param_get(xc_interface *xch, uint32_t dom, uint32_t param, uint64_t *value);
int xc_domain_hvm_getcontext(xc_interface *xch, uint32_t domid, uint8_t *ctxt_buf, uint32_t size);
int xc_domain_hvm_setcontext(xc_interface *xch, uint32_t domid, uint8_t *hvm_ctxt, uint32_t size);
#define XEN_DOMCTL_PFINFO_LTAB_SHIFT ...
#define SHUTDOWN_suspend ...
/* xenforeignmemory.h */
xenforeignmemory_handle *xenforeignmemory_open(xentoollog_logger *logger, unsigned open_flags);
int xenforeignmemory_close(xenforeignmemory_handle *fmem);
void *xenforeignmemory_map(xenforeignmemory_handle *fmem, uint32_t dom, int prot, size_t pages,
                           const xen_pfn_t *arr, int *err);
int xenforeignmemory_unmap(xenforeignmemory_handle *fmem, void *addr, size_t pages);
xenforeignmemory_resource_handle *xenforeignmemory_map_resource(
    xenforeignmemory_handle *fmem, uint16_t domid, unsigned int type, unsigned int id, unsigned long frame,
    unsigned long nr_frames, void **paddr, int prot, int flags);
int xenforeignmemory_unmap_resource(xenforeignmemory_handle *fmem, xenforeignmemory_resource_handle *fres);
#define XENMEM_resource_grant_table ...
#define XENMEM_resource_grant_table_id_shared ...

/* xenevtchn.h */
xenevtchn_handle *xenevtchn_open(xentoollog_logger *logger, unsigned int flags);
int xenevtchn_close(xenevtchn_handle *xce);
int xenevtchn_notify(xenevtchn_handle *xce, uint32_t port);
int xenevtchn_bind_interdomain(xenevtchn_handle *xce, uint32_t domid, uint32_t remote_port);

/* xenstore.h */
struct xs_handle;
struct xs_permissions { unsigned int id; int perms; ...; };
struct xs_handle *xs_open(unsigned long flags);
void xs_close(struct xs_handle *xsh);
char **xs_directory(struct xs_handle *h, xs_transaction_t t, const char *path, unsigned int *num);
void *xs_read(struct xs_handle *h, xs_transaction_t t, const char *path, unsigned int *len);
bool xs_write(struct xs_handle *h, xs_transaction_t t, const char *path, const void *data, unsigned int len);
bool xs_mkdir(struct xs_handle *h, xs_transaction_t t, const char *path);
bool xs_rm(struct xs_handle *h, xs_transaction_t t, const char *path);
bool xs_set_permissions(struct xs_handle *h, xs_transaction_t t, const char *path,
                        struct xs_permissions *perms, unsigned int num_perms);
bool xs_watch(struct xs_handle *h, const char *path, const char *token);
bool xs_unwatch(struct xs_handle *h, const char *path, const char *token);
int xs_fileno(struct xs_handle *h);
char **xs_check_watch(struct xs_handle *h);
xs_transaction_t xs_transaction_start(struct xs_handle *h);
bool xs_transaction_end(struct xs_handle *h, xs_transaction_t t, bool abort);
bool xs_introduce_domain(struct xs_handle *h, unsigned int domid, unsigned long mfn, unsigned int eventchn);
bool xs_resume_domain(struct xs_handle *h, unsigned int domid);
bool xs_release_domain(struct xs_handle *h, unsigned int domid);
#define XS_PERM_NONE ...
#define XS_PERM_READ ...
#define XS_PERM_WRITE ...

void free(void *ptr);

void pyxc_keep_freed_memory(void);
int pyxc_leave_memory_behind(void);

/*
 * What pyxc uses of libxl, as cffi (API mode) reads it. libxl's own structures, which grow with every
 * release, stay in C: configurations come and go as JSON.
 */
typedef struct libxl__ctx libxl_ctx;
typedef struct xentoollog_logger xentoollog_logger;

/* shim/libxl_shim.h */
extern "Python" void pyxc_log_message(int level, int errnoval, char *context, char *text);
libxl_ctx *pyxc_libxl_open(void);
char *pyxc_libxl_domain_config(libxl_ctx *ctx, uint32_t domid, int *rc);

struct pyxc_making { uint32_t domid; int rc; ...; };
struct pyxc_making *pyxc_making_new(libxl_ctx *ctx, const char *config_json, int *rc);
int pyxc_making_start(libxl_ctx *ctx, struct pyxc_making *making, int fd);
int pyxc_making_wait(libxl_ctx *ctx, struct pyxc_making *making);
int pyxc_making_abort(libxl_ctx *ctx, struct pyxc_making *making);
void pyxc_making_free(struct pyxc_making *making);

int pyxc_libxl_destroy(libxl_ctx *ctx, uint32_t domid);
int pyxc_libxl_unpause(libxl_ctx *ctx, uint32_t domid);
int pyxc_libxl_core_dump(libxl_ctx *ctx, uint32_t domid, const char *path);
int pyxc_libxl_preserve(libxl_ctx *ctx, uint32_t domid, const char *config_json, const char *suffix);
int pyxc_libxl_wait_for_end(libxl_ctx *ctx, uint32_t domid, int *reason);
#define PYSAVE_DESTROYED ...

/* libxl.h */
int libxl_ctx_free(libxl_ctx *ctx);
const char *libxl_error_to_string(int error);
int libxl_name_to_domid(libxl_ctx *ctx, const char *name, uint32_t *domid);
#define ERROR_ABORTED ...

/* libxl_event.h */
typedef struct libxl__evgen_domain_death libxl_evgen_domain_death;
int libxl_evenable_domain_death(libxl_ctx *ctx, uint32_t domid, uint64_t user, libxl_evgen_domain_death **evgen);
void libxl_evdisable_domain_death(libxl_ctx *ctx, libxl_evgen_domain_death *evgen);

void free(void *ptr);

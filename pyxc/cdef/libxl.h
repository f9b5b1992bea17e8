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

struct pyxc_restore { uint32_t domid; int rc; ...; };
struct pyxc_restore *pyxc_restore_new(libxl_ctx *ctx, const char *config_json, int *rc);
int pyxc_restore_start(libxl_ctx *ctx, struct pyxc_restore *restore, int fd);
int pyxc_restore_wait(libxl_ctx *ctx, struct pyxc_restore *restore);
int pyxc_restore_abort(libxl_ctx *ctx, struct pyxc_restore *restore);
void pyxc_restore_free(struct pyxc_restore *restore);

int pyxc_libxl_destroy(libxl_ctx *ctx, uint32_t domid);
int pyxc_libxl_unpause(libxl_ctx *ctx, uint32_t domid);

/* libxl.h */
int libxl_ctx_free(libxl_ctx *ctx);
const char *libxl_error_to_string(int error);
#define ERROR_ABORTED ...

void free(void *ptr);

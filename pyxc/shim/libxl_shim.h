/*
 * libxl, for pyxc._libxl. Like the other shims: fill one structure, make one call, report its own code.
 * Configurations cross as JSON, so that no Python knows the layout of libxl's structures.
 */
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <libxl.h>
#include <libxl_event.h>
#include <libxl_utils.h>
#include <xentoollog.h>

#include "log.h"

/* libxl waits for its own children only: those of the program are the program's. */
static const libxl_childproc_hooks pyxc_children = {
    .chldowner = libxl_sigchld_owner_libxl_always_selective_reap,
};

static libxl_ctx *pyxc_libxl_open(void)
{
    libxl_ctx *ctx = NULL;

    if ( libxl_ctx_alloc(&ctx, LIBXL_VERSION, 0, pyxc_logger()) )
        return NULL;
    libxl_childproc_setmode(ctx, &pyxc_children, NULL);
    return ctx;
}

/* What `xl save` would put into an image; to be freed. No domid: the restored domain takes a free one. */
static char *pyxc_libxl_domain_config(libxl_ctx *ctx, uint32_t domid, int *rc)
{
    libxl_domain_config config;
    char *json = NULL;

    libxl_domain_config_init(&config);
    *rc = libxl_retrieve_domain_configuration(ctx, domid, &config, NULL);
    if ( !*rc )
    {
        config.c_info.domid = 0;
        json = libxl_domain_config_to_json(ctx, &config);
        if ( !json )
            *rc = ERROR_FAIL;
    }
    libxl_domain_config_dispose(&config);
    return json;
}

/* One domain being made, restored or new, which goes on while others look after signals. */
struct pyxc_making {
    uint32_t domid;
    int rc;
    libxl_domain_config config;
    libxl_domain_restore_params params;
    libxl_asyncop_how how;
};

static struct pyxc_making *pyxc_making_new(libxl_ctx *ctx, const char *config_json, int *rc)
{
    struct pyxc_making *making = calloc(1, sizeof(*making));

    if ( !making )
    {
        *rc = ERROR_NOMEM;
        return NULL;
    }
    libxl_domain_config_init(&making->config);
    libxl_domain_restore_params_init(&making->params);
    *rc = libxl_domain_config_from_json(ctx, &making->config, config_json);
    if ( *rc )
    {
        libxl_domain_restore_params_dispose(&making->params);
        libxl_domain_config_dispose(&making->config);
        free(making);
        return NULL;
    }
    making->params.checkpointed_stream = LIBXL_CHECKPOINTED_STREAM_NONE;
    making->params.stream_version = 2;
    libxl_defbool_set(&making->params.userspace_colo_proxy, false);
    making->domid = INVALID_DOMID;
    if ( !libxl_domid_valid_guest(making->config.c_info.domid) )
        making->config.c_info.domid = INVALID_DOMID;
    making->how.u.for_event = (uintptr_t)making;
    return making;
}

/* `fd`: what it is restored from; -1: it is a new one. */
static int pyxc_making_start(libxl_ctx *ctx, struct pyxc_making *making, int fd)
{
    if ( fd < 0 )
    {
        making->config.c_info.domid = INVALID_DOMID;
        return libxl_domain_create_new(ctx, &making->config, &making->domid, &making->how, NULL);
    }
    return libxl_domain_create_restore(ctx, &making->config, &making->domid, fd, -1, &making->params,
                                       &making->how, NULL);
}

/* Runs libxl's event loop until that is over. */
static int pyxc_making_wait(libxl_ctx *ctx, struct pyxc_making *making)
{
    bool over = false;

    while ( !over )
    {
        libxl_event *event;
        int rc = libxl_event_wait(ctx, &event, LIBXL_EVENTMASK_ALL, NULL, NULL);

        if ( rc )
            return rc;
        over = event->type == LIBXL_EVENT_TYPE_OPERATION_COMPLETE &&
               event->for_user == making->how.u.for_event;
        if ( over )
            making->rc = event->u.operation_complete.rc;
        libxl_event_free(ctx, event);
    }
    return making->rc;
}

static int pyxc_making_abort(libxl_ctx *ctx, struct pyxc_making *making)
{
    return libxl_ao_abort(ctx, &making->how);
}

static void pyxc_making_free(struct pyxc_making *making)
{
    libxl_domain_restore_params_dispose(&making->params);
    libxl_domain_config_dispose(&making->config);
    free(making);
}

static int pyxc_libxl_destroy(libxl_ctx *ctx, uint32_t domid)
{
    return libxl_domain_destroy(ctx, domid, NULL);
}

static int pyxc_libxl_unpause(libxl_ctx *ctx, uint32_t domid)
{
    return libxl_domain_unpause(ctx, domid, NULL);
}

static int pyxc_libxl_core_dump(libxl_ctx *ctx, uint32_t domid, const char *path)
{
    return libxl_domain_core_dump(ctx, domid, path, NULL);
}

/* Give a domain that has ended another UUID, and a suffix to its name, so that both are free. */
static int pyxc_libxl_preserve(libxl_ctx *ctx, uint32_t domid, const char *config_json, const char *suffix)
{
    libxl_domain_config config;
    libxl_uuid uuid;
    int rc;

    libxl_uuid_generate(&uuid);
    libxl_domain_config_init(&config);
    rc = libxl_domain_config_from_json(ctx, &config, config_json);
    if ( !rc )
        rc = libxl_domain_preserve(ctx, domid, &config.c_info, suffix, uuid);
    libxl_domain_config_dispose(&config);
    return rc;
}

#define PYSAVE_DESTROYED (-2) /* no libxl_shutdown_reason */

/* Waits until the domain shuts down, or is destroyed, and says why. Also when that has happened already. */
static int pyxc_libxl_wait_for_end(libxl_ctx *ctx, uint32_t domid, int *reason)
{
    bool ours = false;

    while ( !ours )
    {
        libxl_event *event;
        int rc = libxl_event_wait(ctx, &event, LIBXL_EVENTMASK_ALL, NULL, NULL);

        if ( rc )
            return rc;
        ours = event->domid == domid && (event->type == LIBXL_EVENT_TYPE_DOMAIN_SHUTDOWN ||
                                         event->type == LIBXL_EVENT_TYPE_DOMAIN_DEATH);
        if ( ours )
            *reason = event->type == LIBXL_EVENT_TYPE_DOMAIN_DEATH ? PYSAVE_DESTROYED
                                                                  : event->u.domain_shutdown.shutdown_reason;
        libxl_event_free(ctx, event);
    }
    return 0;
}

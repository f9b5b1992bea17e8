/* libxc's messages become Python calls, already formatted. */
#ifndef PYXC_SHIM_LOG_H
#define PYXC_SHIM_LOG_H

static void pyxc_log_message(int level, int errnoval, char *context, char *text);

static void pyxc_vmessage(struct xentoollog_logger *logger, xentoollog_level level, int errnoval,
                          const char *context, const char *format, va_list al)
{
    char text[1024];
    int saved_errno = errno;

    (void)logger;
    vsnprintf(text, sizeof(text), format, al);
    pyxc_log_message((int)level, errnoval, (char *)(context ? context : ""), text);
    errno = saved_errno;
}

static void pyxc_no_progress(struct xentoollog_logger *logger, const char *context,
                             const char *doing_what, int percent, unsigned long done, unsigned long total)
{
    (void)logger; (void)context; (void)doing_what; (void)percent; (void)done; (void)total;
}

static void pyxc_logger_destroy(struct xentoollog_logger *logger) { (void)logger; }

static struct xentoollog_logger pyxc_logger_vtable = {
    .vmessage = pyxc_vmessage,
    .progress = pyxc_no_progress,
    .destroy = pyxc_logger_destroy,
};

static xentoollog_logger *pyxc_logger(void) { return &pyxc_logger_vtable; }

#endif

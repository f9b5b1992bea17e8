/*
 * What a C macro, a private prototype or a layout that differs between Xen releases would otherwise
 * hide from Python. Every function here is a thin wrapper: it fills one structure, makes one library
 * call and reports libxc's own return value with errno untouched. All policy lives in Python.
 *
 * The headers below hold one subject each. They rely on the includes of this one.
 */
#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <xenctrl.h>
#include <xenevtchn.h>
#include <xenforeignmemory.h>
#include <xenguest.h>
#include <xenstore.h>
#include <xentoollog.h>

#include <xen/hvm/params.h>
#include <xen/io/console.h>
#include <xen/memory.h>

#ifndef PYXC_BUILT_FOR
#define PYXC_BUILT_FOR "unknown"
#endif

static const char *pyxc_built_for(void) { return PYXC_BUILT_FOR; }

#include "log.h"
#include "host.h"
#include "domain.h"
#include "vcpu.h"
#include "pages.h"
#include "logdirty.h"
#include "schedulers.h"
#include "process.h"

/* As `pyxc._arch` names them. */
static const char *pyxc_architecture(void)
{
#ifdef __aarch64__
    return "arm64";
#else
    return "x86";
#endif
}

#ifdef __aarch64__
#include <sys/auxv.h>
#include <xen/platform.h>
#include <xencall.h>
#include "arm64.h"
#else
#include <xen/foreign/x86_64.h>
#include "vcpu_x86.h"
#include "pin_x86.h"
#include "cpu_policy.h"
#include "layout_x86_pv.h"
#endif

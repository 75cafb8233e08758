// SPDX-License-Identifier: GPL-2.0
/* A module that puts a probe of its own on an instruction: insmod lucos_probe.ko symbol=version_proc_show offset=5. */

#include <linux/kprobes.h>
#include <linux/module.h>
#include <linux/moduleparam.h>

static char *symbol;
module_param(symbol, charp, 0444);
static uint offset;
module_param(offset, uint, 0444);

static int lucos_probed(struct kprobe *probe, struct pt_regs *regs)
{
	return 0;
}

static struct kprobe probe = { .pre_handler = lucos_probed };

static int __init probe_init(void)
{
	probe.symbol_name = symbol;
	probe.offset = offset;
	return register_kprobe(&probe);
}
module_init(probe_init);

static void __exit probe_exit(void)
{
	unregister_kprobe(&probe);
}
module_exit(probe_exit);

MODULE_DESCRIPTION("A probe of a module");
MODULE_LICENSE("GPL");

// SPDX-License-Identifier: GPL-2.0
/*
 * A livepatch of the guest's own, by the kernel's own means, of version_proc_show: /proc/version begins with "by the guest: ".
 * It is disabled by writing 0 to /sys/kernel/livepatch/lucos_livepatch/enabled, and can then be unloaded.
 */

#include <linux/kernel.h>
#include <linux/livepatch.h>
#include <linux/module.h>
#include <linux/seq_file.h>
#include <linux/utsname.h>

static int livepatch_version_proc_show(struct seq_file *m, void *v)
{
	seq_printf(m, "by the guest: %s\n", utsname()->release);
	return 0;
}

static struct klp_func functions[] = {
	{ .old_name = "version_proc_show", .new_func = livepatch_version_proc_show },
	{ }
};

static struct klp_object objects[] = {
	{ .funcs = functions },
	{ }
};

static struct klp_patch patch = { .mod = THIS_MODULE, .objs = objects };

static int __init livepatch_init(void)
{
	return klp_enable_patch(&patch);
}
module_init(livepatch_init);

static void __exit livepatch_exit(void)
{
}
module_exit(livepatch_exit);

MODULE_DESCRIPTION("A livepatch of the guest's own");
MODULE_LICENSE("GPL");
MODULE_INFO(livepatch, "Y");

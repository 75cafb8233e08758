// SPDX-License-Identifier: GPL-2.0
/* A new version of a function of the kernel, in a module that anybody can unload at any moment. */

#include <linux/init.h>
#include <linux/module.h>
#include <linux/ptrace.h>

long lucos_unpinned_getppid(const struct pt_regs *regs);

/* For __x64_sys_getppid: another number than any process has. */
long lucos_unpinned_getppid(const struct pt_regs *regs)
{
	return 0x6c75636f;
}

static int __init unpinned_init(void)
{
	return 0;
}
module_init(unpinned_init);

static void __exit unpinned_exit(void)
{
}
module_exit(unpinned_exit);

MODULE_DESCRIPTION("A new version of a function that does not stay");
MODULE_LICENSE("GPL");
MODULE_INFO(lucos, "1");

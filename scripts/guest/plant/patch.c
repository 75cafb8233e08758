// SPDX-License-Identifier: GPL-2.0
/* New versions of functions of the kernel, which differ from the old ones in ways that a program sees and nobody minds. */

#include <linux/errno.h>
#include <linux/init.h>
#include <linux/module.h>
#include <linux/ptrace.h>
#include <linux/sched.h>
#include <linux/sched/task.h>
#include <linux/seq_file.h>
#include <linux/string.h>
#include <linux/utsname.h>

/* The kernel does not export it, and whoever loads this says where it is. */
extern const char linux_proc_banner[] __attribute__((weak));

int lucos_version_proc_show(struct seq_file *m, void *v);
long lucos_sys_pause(const struct pt_regs *regs);
long lucos_sys_getppid(const struct pt_regs *regs);
long lucos_sys_getpid(const struct pt_regs *regs);
void lucos_set_task_comm(struct task_struct *task, const char *name, bool exec);

/* For version_proc_show, which prints /proc/version (fs/proc/version.c). */
int lucos_version_proc_show(struct seq_file *m, void *v)
{
	seq_puts(m, "patched: ");
	seq_printf(m, linux_proc_banner, utsname()->sysname, utsname()->release, utsname()->version);
	return 0;
}

/* For __x64_sys_pause, which sleeps until a signal comes: does not sleep. */
long lucos_sys_pause(const struct pt_regs *regs)
{
	return -EAGAIN;
}

/* For __x64_sys_getppid: another number than any process has. */
long lucos_sys_getppid(const struct pt_regs *regs)
{
	return 0x6c75636f;
}

/* For __x64_sys_getpid: the same. */
long lucos_sys_getpid(const struct pt_regs *regs)
{
	return task_tgid_vnr(current);
}

/* For __set_task_comm (fs/exec.c): tells nobody, neither by a tracepoint nor by perf. */
void lucos_set_task_comm(struct task_struct *task, const char *name, bool exec)
{
	task_lock(task);
	strscpy_pad(task->comm, name, sizeof(task->comm));
	task_unlock(task);
}

static int __init patch_init(void)
{
	__module_get(THIS_MODULE);
	return 0;
}
module_init(patch_init);

static void __exit patch_exit(void)
{
}
module_exit(patch_exit);

MODULE_DESCRIPTION("New versions of functions");
MODULE_LICENSE("GPL");
MODULE_INFO(lucos, "1");

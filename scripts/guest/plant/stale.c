// SPDX-License-Identifier: GPL-2.0
/*
 * Keeps the address of an instruction in the middle of a function, as whoever copies the first instructions of a function to
 * somewhere else does, and goes on from there whenever /sys/module/lucos_stale/parameters/call is read.
 */

#include <asm/nospec-branch.h>
#include <linux/errno.h>
#include <linux/init.h>
#include <linux/kprobes.h>
#include <linux/module.h>
#include <linux/moduleparam.h>
#include <linux/sched.h>
#include <linux/string.h>
#include <linux/sysfs.h>
#include <linux/uaccess.h>

/* getpid(2): `return task_tgid_vnr(current)`, which begins with what its three arguments to another function are. */
#define FUNCTION "__x64_sys_getpid"
/* How many bytes behind the address are shown. */
#define SHOWN 8

static const u8 mark[] = { 0xf3, 0x0f, 0x1e, 0xfa };
static const u8 nop[] = { 0x0f, 0x1f, 0x44, 0x00, 0x00 };
/* xor %edx,%edx; mov $1,%esi, as gcc has it for 6.1. */
static const u8 two[] = { 0x31, 0xd2, 0xbe, 0x01, 0x00, 0x00, 0x00 };
/* mov %gs:DISTANCE(%rip),%rdi, as it has it for 6.12, and the bytes of the distance. */
static const u8 one[] = { 0x65, 0x48, 0x8b, 0x3d };
#define DISTANCE_BYTES 4

/* Behind those of the instructions that a jump is written over. */
static const u8 *behind;

/* Has the arguments where those instructions put them, and goes on from behind them. */
static noinline long go_on(void)
{
	struct task_struct *task = current;
	unsigned long type = PIDTYPE_TGID, namespace = 0;
	long answer;

	asm volatile(ANNOTATE_RETPOLINE_SAFE
		     "call *%[behind]"
		     : "=a" (answer), ASM_CALL_CONSTRAINT, "+D" (task), "+S" (type), "+d" (namespace)
		     : [behind] "r" (behind)
		     : "rcx", "r8", "r9", "r10", "r11", "memory", "cc");
	return answer;
}

/* What it returns, and what it should. */
static int show_call(char *buffer, const struct kernel_param *param)
{
	long answer = go_on();

	return sysfs_emit(buffer, "%ld %d\n", answer, current->tgid);
}

/* What is there. */
static int show_bytes(char *buffer, const struct kernel_param *param)
{
	u8 bytes[SHOWN];

	if (copy_from_kernel_nofault(bytes, behind, SHOWN))
		return -EFAULT;
	return sysfs_emit(buffer, "%*phN\n", SHOWN, bytes);
}

static const struct kernel_param_ops call_ops = { .get = show_call };
module_param_cb(call, &call_ops, NULL, 0444);
static const struct kernel_param_ops bytes_ops = { .get = show_bytes };
module_param_cb(bytes, &bytes_ops, NULL, 0444);

/* Where a function begins is told to whoever puts a probe there, and to no one else. */
static const u8 *find(void)
{
	struct kprobe probe = { .symbol_name = FUNCTION };
	const u8 *found;

	if (register_kprobe(&probe))
		return NULL;
	found = (const u8 *)probe.addr;
	unregister_kprobe(&probe);
	return found;
}

static int __init stale_init(void)
{
	const u8 *at = find();

	if (!at)
		return -ENOENT;
	if (!memcmp(at, mark, sizeof(mark)))
		at += sizeof(mark);
	if (memcmp(at, nop, sizeof(nop)))
		return -ENOEXEC;
	at += sizeof(nop);
	if (!memcmp(at, two, sizeof(two)))
		behind = at + sizeof(two);
	else if (!memcmp(at, one, sizeof(one)))
		behind = at + sizeof(one) + DISTANCE_BYTES;
	else
		return -ENOEXEC;
	return 0;
}
module_init(stale_init);

MODULE_DESCRIPTION("Goes on in the middle of a function");
MODULE_LICENSE("GPL");

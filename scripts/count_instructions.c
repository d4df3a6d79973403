// A plugin of qemu-user that counts executed instructions by function, for scripts/count-instructions:
//   qemu-aarch64 -d plugin -D /dev/null -plugin count_instructions.so,out=FILE PROGRAM ..
// (with -d, qemu reads the program's symbols). FILE gets a line for each function: the count, a blank, its name.
// What it needs of qemu-plugin.h (interface version 1, qemu 4.2 to 8) is declared here: Debian has the header in no package.
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint64_t qemu_plugin_id_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
enum qemu_plugin_op { QEMU_PLUGIN_INLINE_ADD_U64 };
void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t, void (*)(qemu_plugin_id_t, struct qemu_plugin_tb *));
void qemu_plugin_register_atexit_cb(qemu_plugin_id_t, void (*)(qemu_plugin_id_t, void *), void *);
void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *, enum qemu_plugin_op, void *, uint64_t);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
const char *qemu_plugin_insn_symbol(const struct qemu_plugin_insn *);

__attribute__((visibility("default"))) int qemu_plugin_version = 1;

struct function {
  struct function *next;
  uint64_t count; // threads may lose some of each other's: what is counted runs on one
  char name[];
};
static struct function *buckets[4096];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static const char *out;

static struct function *find(const char *name) {
  unsigned hash = 5381;
  for (const char *c = name; *c; c++) hash = 33 * hash + (unsigned char)*c;
  struct function **bucket = &buckets[hash % 4096], *function;
  for (function = *bucket; function; function = function->next)
    if (!strcmp(function->name, name)) return function;
  function = calloc(1, sizeof *function + strlen(name) + 1);
  if (!function) abort();
  strcpy(function->name, name);
  function->next = *bucket;
  return *bucket = function;
}

// Code that is translated, once: a run of instructions of one function.
static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb *tb) {
  (void)id;
  const char *name = qemu_plugin_insn_symbol(qemu_plugin_tb_get_insn(tb, 0));
  pthread_mutex_lock(&lock);
  struct function *function = find(name && *name ? name : "?");
  pthread_mutex_unlock(&lock);
  qemu_plugin_register_vcpu_tb_exec_inline(tb, QEMU_PLUGIN_INLINE_ADD_U64, &function->count, qemu_plugin_tb_n_insns(tb));
}

static void at_exit(qemu_plugin_id_t id, void *data) {
  (void)id, (void)data;
  FILE *file = fopen(out, "w");
  if (!file) return;
  for (size_t i = 0; i < 4096; i++)
    for (struct function *f = buckets[i]; f; f = f->next)
      if (f->count) fprintf(file, "%" PRIu64 " %s\n", f->count, f->name);
  fclose(file);
}

__attribute__((visibility("default"))) int qemu_plugin_install(qemu_plugin_id_t id, const void *info, int argc, char **argv) {
  (void)info;
  for (int i = 0; i < argc; i++)
    if (!strncmp(argv[i], "out=", 4)) out = strdup(argv[i] + 4);
  if (!out) return 1;
  qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
  qemu_plugin_register_atexit_cb(id, at_exit, NULL);
  return 0;
}

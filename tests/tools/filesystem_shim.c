/* Preloaded: answers link() and flock() as other filesystems do.
 *
 * LINK_ERRNO: the number with which every link fails.
 * FLOCK_ERRNO: the number with which every flock fails.
 * FLOCK_AS_NFS: a flock needs a descriptor that may write.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/file.h>
#include <unistd.h>

static int fails(const char *name) {
    const char *number = getenv(name);
    if (number == NULL) return 0;
    errno = atoi(number);
    return 1;
}

int link(const char *from, const char *to) {
    if (fails("LINK_ERRNO")) return -1;
    return linkat(AT_FDCWD, from, AT_FDCWD, to, 0);
}

int linkat(int from_folder, const char *from, int to_folder, const char *to, int flags) {
    int (*real)(int, const char *, int, const char *, int) = dlsym(RTLD_NEXT, "linkat");
    if (fails("LINK_ERRNO")) return -1;
    return real(from_folder, from, to_folder, to, flags);
}

int flock(int descriptor, int operation) {
    int (*real)(int, int) = dlsym(RTLD_NEXT, "flock");
    if (fails("FLOCK_ERRNO")) return -1;
    if (getenv("FLOCK_AS_NFS") && (fcntl(descriptor, F_GETFL) & O_ACCMODE) == O_RDONLY) {
        errno = EBADF;
        return -1;
    }
    return real(descriptor, operation);
}

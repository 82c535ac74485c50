/* Loads the library, uses it on a thread, and unloads it before that ends. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include <kvm_memslots_client.h>

static pthread_barrier_t used, closed;

static void *use(void *opaque)
{
	int (*unmap)(struct kvm_memslots_changes *, uint64_t) = 0;

	*(void **)&unmap = dlsym(opaque, "kvm_memslots_unmap");
	/* A failure is kept for the thread, with a destructor. */
	if (!unmap || unmap(NULL, 1) != -EINVAL)
		exit(1);
	pthread_barrier_wait(&used);
	pthread_barrier_wait(&closed);
	return NULL;
}

int main(int argc, char **argv)
{
	void *library = argc == 2 ? dlopen(argv[1], RTLD_NOW) : NULL;
	pthread_t thread;

	if (!library) {
		printf("%s\n", dlerror());
		return 1;
	}
	pthread_barrier_init(&used, NULL, 2);
	pthread_barrier_init(&closed, NULL, 2);
	if (pthread_create(&thread, NULL, use, library))
		return 1;
	pthread_barrier_wait(&used);
	dlclose(library);
	pthread_barrier_wait(&closed);
	pthread_join(thread, NULL);
	return 0;
}

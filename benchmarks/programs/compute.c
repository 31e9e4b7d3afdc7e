/* compute N T: N rounds of integer arithmetic, divided among T threads (0: none but the main one). */
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

static uint64_t rounds;
static uint64_t results[64];

static void *work(void *slot)
{
	uint64_t x = 88172645463325252ULL + (uint64_t)(uintptr_t)slot, sum = 0;
	for (uint64_t i = 0; i < rounds; i++) {
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		sum += x % 1000003;
	}
	results[(uintptr_t)slot] = sum;
	return NULL;
}

int main(int argc, char **argv)
{
	if (argc != 3) return 2;
	unsigned threads = (unsigned)atoi(argv[2]);
	rounds = strtoull(argv[1], NULL, 10) / (threads ? threads : 1);
	pthread_t ids[64];
	if (threads > 64) return 2;
	if (!threads) work((void *)0);
	for (uintptr_t i = 0; i < threads; i++)
		if (pthread_create(&ids[i], NULL, work, (void *)i)) return 1;
	for (unsigned i = 0; i < threads; i++) pthread_join(ids[i], NULL);
	uint64_t sum = 0;
	for (unsigned i = 0; i < 64; i++) sum += results[i];
	printf("%llu\n", (unsigned long long)sum);
	return 0;
}

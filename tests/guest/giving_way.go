// Goroutines that compute without a call until another one tells them to stop.
package main

import (
	"crypto/sha256"
	"fmt"
	"math"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

var stop int32

func stopped() bool { return atomic.LoadInt32(&stop) != 0 }

//go:noinline
func asked() bool { return stopped() }

func later() {
	atomic.StoreInt32(&stop, 0)
	go func() {
		time.Sleep(5 * time.Millisecond)
		atomic.StoreInt32(&stop, 1)
	}()
}

func fibonacci(n int) int {
	if n < 2 {
		return n
	}
	return fibonacci(n-1) + fibonacci(n-2)
}

func numbers() {
	later()
	x := 1.5
	for !stopped() {
		x = x*1.0000001 + 0.5
	}
	later()
	n := uint64(1)
	for !stopped() {
		n = n*6364136223846793005 + 1442695040888963407
	}
	later()
	s := 1.0
	for !asked() {
		s = math.Sin(s) + 0.001
	}
	fmt.Println("numbers", x, n, s)
}

func work() {
	later()
	calls := 0
	for !stopped() {
		calls += fibonacci(20)
	}
	later()
	found := map[string]int{}
	for i := 0; !stopped(); i++ {
		found[strings.Repeat("x", i%50)]++
	}
	later()
	sum := sha256.Sum256(nil)
	for !stopped() {
		sum = sha256.Sum256(sum[:])
	}
	fmt.Printf("work %d %d %d %x\n", calls, len(found), found["xxx"], sum[:8])
}

type place struct {
	lock sync.Mutex
	n    int
}

func locks() {
	var p place
	p.lock.Lock()
	go func() {
		time.Sleep(5 * time.Millisecond)
		p.lock.Unlock()
	}()
	for !p.lock.TryLock() {
		p.n = p.n*3 + 1
	}
	var word int32 = 1
	go func() {
		time.Sleep(5 * time.Millisecond)
		atomic.StoreInt32(&word, 0)
	}()
	n := uint32(1)
	for !atomic.CompareAndSwapInt32(&word, 0, 1) {
		n = n*1664525 + 1013904223
	}
	fmt.Println("locks", p.n, n)
}

func channels() {
	done := make(chan bool)
	time.AfterFunc(5*time.Millisecond, func() { close(done) })
	x := 0.0
loop:
	for i := 1; ; i++ {
		select {
		case <-done:
			break loop
		default:
			x += 1 / float64(i)
		}
	}
	filled := make(chan int, 3)
	go func() {
		for i := 0; i < cap(filled); i++ {
			time.Sleep(time.Millisecond)
			filled <- i
		}
	}()
	n := uint32(1)
	for len(filled) < cap(filled) {
		n = n*1664525 + 1013904223
	}
	fmt.Println("channels", x, n)
}

func several() {
	later()
	results := make([]float64, 4)
	var all sync.WaitGroup
	for i := range results {
		all.Add(1)
		go func(i int) {
			defer all.Done()
			for x := float64(i); !stopped(); results[i] += x {
				x = math.Sqrt(3*x + 1)
			}
		}(i)
	}
	all.Wait()
	for i, result := range results {
		if result < 0 || math.IsNaN(result) {
			fmt.Println("result", i, "is", result)
			os.Exit(1)
		}
	}
	atomic.StoreInt32(&stop, 0)
	go func() {
		runtime.GC()
		atomic.StoreInt32(&stop, 1)
	}()
	n := uint32(1)
	for !stopped() {
		n = n*1664525 + 1013904223
	}
	fmt.Println("several", results, n)
}

// The runtime takes the processor from a goroutine a hundred times and more.
func often() {
	atomic.StoreInt32(&stop, 0)
	go func() {
		time.Sleep(2500 * time.Millisecond)
		atomic.StoreInt32(&stop, 1)
	}()
	n := uint32(1)
	for !stopped() {
		n = n*1664525 + 1013904223
	}
	fmt.Println("often", n)
}

// A signal's handler is called for what is where loops are counted.
func faults() {
	caught := 0
	for i := 0; i < 1000; i++ {
		func() {
			defer func() {
				if recover() != nil {
					caught++
				}
			}()
			var p *place
			if i%3 == 0 {
				p = new(place)
			}
			for j := 0; j < 3; j++ {
				p.n += len(os.Args[0])
				if asked() && j > 1 {
					p.n--
				}
			}
		}()
	}
	if caught != 666 {
		fmt.Println("faults:", caught)
		os.Exit(1)
	}
}

func main() {
	numbers()
	work()
	locks()
	channels()
	several()
	often()
	faults()
	maps, _ := os.ReadFile("/proc/self/maps")
	if text := string(maps); strings.Contains(text, "detbox") || strings.Count(text, "r-xp") > 3 {
		fmt.Print(text)
		os.Exit(1)
	}
	fmt.Println("EXIT-SUCCESS")
}

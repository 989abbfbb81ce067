package uring

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// TestPlacement: gathering with little to do, leaving when the CPU is crowded, and coming back.
func TestPlacement(t *testing.T) {
	const cpu = 3
	type step struct {
		name        string
		share, wait float64
		target      int
		want        int
	}
	ms := int64(1e6)
	for _, c := range []struct {
		name  string
		steps []step
	}{
		{"little to do", []step{
			{"joins", 0.1, 0, cpu, cpu},
			{"stays", 0.2, 0.1, cpu, cpu},
			{"follows", 0.2, 0.1, cpu + 1, cpu + 1},
			{"nobody to talk to", 0, 0, anyCPU, anyCPU},
		}},
		{"much to do", []step{
			{"doesn't join", 0.31, 0, cpu, anyCPU},
			{"joins", 0.29, 0, cpu, cpu},
			{"stays when gathered", 0.5, 0, cpu, cpu},
			{"leaves", 0.61, 0, cpu, anyCPU},
			{"comes back at once", 0.2, 0, cpu, cpu},
		}},
		{"a busy host", []step{
			{"doesn't join", 0.1, 0.6, cpu, anyCPU},
			{"not yet", 0.1, 0, cpu, cpu},
		}},
		{"crowded", []step{
			{"joins", 0.2, 0, cpu, cpu},
			{"one bad moment", 0.2, 0.9, cpu, cpu},
			{"leaves", 0.2, 0.9, cpu, anyCPU},
			{"stays away", 0.2, 0, cpu, anyCPU},
			{"stays away", 0.2, 0, cpu, anyCPU},
			{"stays away", 0.2, 0, cpu, anyCPU},
			{"less to do than then", 0.1, 0, cpu, cpu},
		}},
		{"crowded, and later", []step{
			{"joins", 0.2, 0, cpu, cpu},
			{"one bad moment", 0.2, 0.9, cpu, cpu},
			{"leaves", 0.2, 0.9, cpu, anyCPU},
			{"10 ms", 0.2, 0, cpu, anyCPU},
			{"20 ms", 0.2, 0, cpu, anyCPU},
			{"30 ms", 0.2, 0, cpu, anyCPU},
			{"40 ms", 0.2, 0, cpu, anyCPU},
			{"50 ms", 0.2, 0, cpu, cpu},
		}},
	} {
		p := placement{cpu: anyCPU}
		for i, s := range c.steps {
			now := int64(i) * 10 * ms
			got := p.next(window{now: now, share: s.share, wait: s.wait, target: s.target})
			if got != p.cpu {
				p.cpu, p.since = got, now
			}
			if got != s.want {
				t.Errorf("%s, step %d (%s): %d, not %d", c.name, i, s.name, got, s.want)
			}
		}
	}
}

// TestPlacementPause: who has to leave again and again stays away longer and longer, but not for
// ever, and starts anew after it could stay for long.
func TestPlacementPause(t *testing.T) {
	p := placement{cpu: 0}
	for i, want := range []int64{50, 100, 200, 400, 800, 1600, 2000, 2000} {
		p.leave(window{now: p.until, share: 0.2})
		if p.pause != want*1e6 {
			t.Fatalf("pause %d is %d ns, not %d ms", i, p.pause, want)
		}
		p.since = p.until
	}
	p.leave(window{now: p.since + 20e9})
	if p.pause != gatherAgain {
		t.Fatalf("the pause is %d ns after 20 s without", p.pause)
	}
}

// TestInterrupts: which CPU takes a device's interrupts, as sysfs has it.
func TestInterrupts(t *testing.T) {
	sys, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	write := func(name, text string) {
		t.Helper()
		name = filepath.Join(sys, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	device := func(major, minor uint32, dir string) uint64 {
		t.Helper()
		write(filepath.Join(dir, "uevent"), "")
		link := filepath.Join(sys, "dev/block", fmt.Sprintf("%d:%d", major, minor))
		if err := os.MkdirAll(filepath.Dir(link), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(filepath.Join(sys, dir), link); err != nil {
			t.Fatal(err)
		}
		return unix.Mkdev(major, minor)
	}
	one := device(254, 1, "devices/pci0/0000:00:02.0/virtio1/block/vda/vda1")
	write("devices/pci0/0000:00:02.0/msi_irqs/35", "msix")
	write("devices/pci0/0000:00:02.0/msi_irqs/36", "msix")
	write("kernel/irq/35/per_cpu_count", "12,0\n")
	write("kernel/irq/36/per_cpu_count", "0,4996609\n")
	spread := device(259, 0, "devices/pci0/0000:00:03.0/nvme/nvme0/nvme0n1")
	write("devices/pci0/0000:00:03.0/msi_irqs/40", "msix")
	write("devices/pci0/0000:00:03.0/msi_irqs/41", "msix")
	write("devices/pci0/0000:00:03.0/msi_irqs/42", "msix") // gone meanwhile
	write("kernel/irq/40/per_cpu_count", "1000,0\n")
	write("kernel/irq/41/per_cpu_count", "0,x,900\n")
	loop := device(7, 0, "devices/virtual/block/loop0")

	var all unix.CPUSet
	all.Set(0)
	all.Set(1)
	for _, c := range []struct {
		name   string
		device uint64
		total  int64
		cpu    int
	}{
		{"one queue", one, 4996621, 1},
		{"a queue for each CPU", spread, 1900, anyCPU},
		{"without interrupts", loop, 0, anyCPU},
		{"not there", unix.Mkdev(8, 0), 0, anyCPU},
	} {
		count := make([]int64, 4)
		total := addInterrupts(sys, c.device, count)
		if cpu := majority(count, total, &all); total != c.total || cpu != c.cpu {
			t.Errorf("%s: CPU %d of %d interrupts, not %d of %d", c.name, cpu, total, c.cpu, c.total)
		}
	}
}

// TestGather: a loop's thread goes to one CPU, its peer finds it there, and a thread is given back
// as it was.
func TestGather(t *testing.T) {
	if runtime.NumCPU() < 2 {
		t.Skip("needs 2 CPUs")
	}
	server, client := startLoop(t, LoopOptions{}), startLoop(t, LoopOptions{})
	addr, _ := listenBoth(t, server, make(chan string, 1))
	p := &peer{}
	dialTo(t, client, addr, p)
	mask := func(l *Loop) (set unix.CPUSet) {
		on(t, l, func() {
			if err := unix.SchedGetaffinity(0, &set); err != nil {
				t.Error(err)
			}
		})
		return set
	}
	before := mask(server)
	var first int
	for first = 0; !before.IsSet(first); first++ {
	}
	look := func() (cpu int) {
		on(t, client, func() { cpu = p.c.(*conn).peerCPU() })
		return cpu
	}
	if cpu := look(); cpu != anyCPU {
		t.Fatalf("the server is found on CPU %d before it went to one", cpu)
	}
	on(t, server, func() { server.moveTo(first) })
	if got := mask(server); got.Count() != 1 || !got.IsSet(first) {
		t.Fatalf("the server may run on %v", got)
	}
	on(t, client, func() { p.c.(*conn).peer.looked = 0 }) // it looks again only after a while
	if cpu := look(); cpu != first {
		t.Fatalf("the server is found on CPU %d, not %d", cpu, first)
	}
	on(t, server, func() { server.moveTo(anyCPU) })
	if cpu := look(); cpu != anyCPU || mask(server) != before {
		t.Fatalf("the server left and is found on CPU %d", cpu)
	}
	on(t, server, func() { server.moveTo(1 << 9) })
	if mask(server) != before {
		t.Fatal("after a CPU that isn't there the thread isn't where it was")
	}
	on(t, client, func() { client.moveTo(first) })
	on(t, client, func() { client.endGathering() })
	if mask(client) != before {
		t.Fatal("the thread isn't given back as it was")
	}
}

package emulate

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// FaultyOptions say what disk AddFaulty makes.
type FaultyOptions struct {
	Size   int64 // bytes, a multiple of 4096
	Sector int   // bytes that I/O is aligned to: 512 (also if 0) to 4096
	Record bool  // keep a log of all writes and flushes, see ReadWriteLog
	IOPS   int64 // operations per second; 0: not limited
}

// Faulty is a disk whose faults are below the kernel: a loop device over a file that
// qemu-storage-daemon serves by FUSE. What the kernel writes and flushes can be recorded, to be
// replayed up to any moment (a power cut), and operations can be made to fail.
//
// It does one operation at a time: the daemon of that age (7.2) puts the data of a write at risk
// when another request comes meanwhile, so the loop device is one without direct I/O, whose one
// worker waits for each operation, and nothing is read ahead. So the record is also the order in
// which operations completed.
type Faulty struct {
	Disk
	base, log, served, socket string

	daemon *exec.Cmd
	exited chan struct{}
	said   bytes.Buffer
	qmp    net.Conn
	lines  *json.Decoder
	faults string // the node with the faults of now; empty: none
	nodes  int    // made for faults so far
	closed bool
}

// Fault is a kind of operation that fails.
type Fault struct {
	Op     string        // "read", "write" or "flush"
	Sector int64         // that fails, of 512 bytes; -1: any. Ignored for flushes
	Errno  syscall.Errno // 0: EIO
	Once   bool          // only the first time. Flushes: needed, for a later Inject flushes first
}

// FaultyAvailable says what keeps AddFaulty from working here, wrapping errors.ErrUnsupported;
// nil: nothing.
func FaultyAvailable() error {
	if err := Available(); err != nil {
		return err
	}
	if _, err := exec.LookPath("qemu-storage-daemon"); err != nil {
		return fmt.Errorf("%w: no qemu-storage-daemon on the PATH", errors.ErrUnsupported)
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		return fmt.Errorf("%w: no FUSE here", errors.ErrUnsupported)
	}
	text, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(text)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) == 3 && f[1] == "blkio" && f[2] != "/" {
			return fmt.Errorf("%w: this process is in block I/O control group %s: loop devices then "+
				"have a second worker", errors.ErrUnsupported, f[2])
		}
	}
	return nil
}

// AddFaulty makes a disk whose operations can be recorded and made to fail. It must not be used
// by processes of the rig's control group (Wrap, Join).
func (r *Rig) AddFaulty(label string, o FaultyOptions) (_ *Faulty, err error) {
	if !goodName.MatchString(label) || o.Size < 1<<20 || o.Size%4096 != 0 {
		return nil, fmt.Errorf("faulty disk %q of %d bytes: a name of small letters and digits and "+
			"at least 1 MiB in steps of 4 KiB are needed", label, o.Size)
	}
	if err := FaultyAvailable(); err != nil {
		return nil, err
	}
	if o.Sector == 0 {
		o.Sector = 512
	}
	path := filepath.Join(r.dir, prefix+r.name+"-"+label)
	f := &Faulty{Disk: Disk{rig: r}, base: path + ".base", log: path + ".log", served: path,
		socket: path + ".qmp", exited: make(chan struct{})}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("faulty disk %q: %w", label, err), f.Close())
		}
	}()
	for name, size := range map[string]int64{f.base: o.Size, f.log: 0, f.served: 0} {
		if err := makeFile(name, size); err != nil {
			return nil, err
		}
	}
	if err := f.start(o); err != nil {
		return nil, err
	}
	if err := f.attach(o.Sector); err != nil {
		return nil, err
	}
	r.fault = append(r.fault, f)
	return f, nil
}

func makeFile(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(size), f.Close())
}

// start runs the daemon and returns when it serves. The nodes: base is the file, bottom what faults
// are put on (base, or the record of it, or the throttle), top what is exported.
func (f *Faulty) start(o FaultyOptions) error {
	args := []string{"--chardev", "socket,id=qmp,server=on,wait=off,path=" + f.socket,
		"--monitor", "chardev=qmp",
		"--blockdev", "driver=file,node-name=base,discard=unmap,filename=" + f.base}
	bottom := "base"
	if o.Record {
		args = append(args, "--blockdev", "driver=file,node-name=log,filename="+f.log, "--blockdev",
			"driver=blklogwrites,node-name=record,discard=unmap,log-sector-size=512,file=base,log=log")
		bottom = "record"
	}
	if o.IOPS > 0 {
		args = append(args, "--object",
			"throttle-group,id=slow,x-iops-total="+strconv.FormatInt(o.IOPS, 10), "--blockdev",
			"driver=throttle,node-name=throttled,discard=unmap,throttle-group=slow,file="+bottom)
		bottom = "throttled"
	}
	args = append(args, "--blockdev", "driver=raw,node-name=bottom,discard=unmap,file="+bottom,
		"--blockdev", "driver=raw,node-name=top,discard=unmap,file=bottom", "--export",
		"type=fuse,id=export,node-name=top,writable=on,mountpoint="+f.served)
	f.daemon = exec.Command("qemu-storage-daemon", args...)
	f.daemon.Stdout, f.daemon.Stderr = &f.said, &f.said
	f.daemon.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // the death signal is sent when the thread that forked ends
		err := f.daemon.Start()
		started <- err
		if err == nil {
			_ = f.daemon.Wait() // what it has to say is in said
			close(f.exited)
		}
	}()
	if err := <-started; err != nil {
		f.daemon = nil
		return err
	}
	return f.connect()
}

// connect waits until the daemon answers; it opens its monitor first and exports then.
func (f *Faulty) connect() error {
	for deadline := time.Now().Add(goneWithin); ; time.Sleep(10 * time.Millisecond) {
		var err error
		if f.qmp == nil {
			f.qmp, err = net.Dial("unix", f.socket)
		}
		if err == nil && f.isServed() {
			break
		}
		select {
		case <-f.exited:
			return fmt.Errorf("qemu-storage-daemon ended: %s", bytes.TrimSpace(f.said.Bytes()))
		default:
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("qemu-storage-daemon doesn't serve: %w", err)
		}
	}
	f.lines = json.NewDecoder(f.qmp)
	var greeting struct{ QMP json.RawMessage }
	if err := f.lines.Decode(&greeting); err != nil {
		return fmt.Errorf("greeting of qemu-storage-daemon: %w", err)
	}
	return f.command("qmp_capabilities", nil)
}

// isServed says whether the file is the daemon's by now.
func (f *Faulty) isServed() bool {
	var mine, dir unix.Stat_t
	return unix.Stat(f.served, &mine) == nil && unix.Stat(filepath.Dir(f.served), &dir) == nil &&
		mine.Dev != dir.Dev
}

// attach makes the block device.
func (f *Faulty) attach(sector int) error {
	var st unix.Stat_t
	if err := unix.Stat(f.served, &st); err != nil {
		return err
	}
	ahead := fmt.Sprintf("/sys/class/bdi/%d:%d/read_ahead_kb", unix.Major(st.Dev), unix.Minor(st.Dev))
	if err := os.WriteFile(ahead, []byte("0"), 0); err != nil {
		return fmt.Errorf("turn off read-ahead: %w", err)
	}
	out, err := tool("losetup", "--find", "--show", "--sector-size", strconv.Itoa(sector), f.served)
	if err != nil {
		return err
	}
	f.loop = loop{device: strings.TrimSpace(out), file: f.served}
	f.number, err = f.loop.number()
	return err
}

// command does one command of the daemon's monitor.
func (f *Faulty) command(name string, args any) error {
	req := map[string]any{"execute": name}
	if args != nil {
		req["arguments"] = args
	}
	if err := f.qmp.SetDeadline(time.Now().Add(goneWithin)); err != nil {
		return err
	}
	if err := json.NewEncoder(f.qmp).Encode(req); err != nil {
		return fmt.Errorf("ask qemu-storage-daemon: %w", err)
	}
	for {
		var reply struct {
			Return json.RawMessage
			Error  *struct{ Desc string }
		}
		if err := f.lines.Decode(&reply); err != nil {
			return fmt.Errorf("answer of qemu-storage-daemon: %w", err)
		}
		if reply.Error != nil {
			return fmt.Errorf("qemu-storage-daemon: %s: %s", name, reply.Error.Desc)
		}
		if reply.Return != nil {
			return nil // what comes before are events
		}
	}
}

// Inject makes operations fail from now on, instead of those of an earlier call. Without faults
// all is well again. What is written after the call can be read even where reads fail: the kernel
// keeps it.
func (f *Faulty) Inject(faults ...Fault) error {
	if err := f.forget(); err != nil {
		return err
	}
	old, node := f.faults, "bottom"
	f.faults = ""
	if len(faults) > 0 {
		f.nodes++
		node = fmt.Sprintf("faults%d", f.nodes)
		f.faults = node
		rules := []map[string]any{}
		for _, fault := range faults {
			rule := map[string]any{"event": "none", "iotype": fault.Op, "once": fault.Once,
				"errno": int(unix.EIO)}
			if fault.Errno != 0 {
				rule["errno"] = int(fault.Errno)
			}
			if fault.Op != "flush" && fault.Sector >= 0 {
				rule["sector"] = fault.Sector
			}
			rules = append(rules, rule)
		}
		err := f.command("blockdev-add", map[string]any{"driver": "blkdebug", "node-name": node,
			"image": "bottom", "discard": "unmap", "inject-error": rules})
		if err != nil {
			return err
		}
	}
	err := f.command("blockdev-reopen", map[string]any{"options": []map[string]any{{"driver": "raw",
		"node-name": "top", "discard": "unmap", "file": node}}})
	if err == nil && old != "" {
		err = f.command("blockdev-del", map[string]any{"node-name": old})
	}
	return err
}

// forget drops what the kernel keeps of the served file in memory.
func (f *Faulty) forget() error {
	file, err := os.Open(f.served)
	if err != nil {
		return err
	}
	defer file.Close()
	if err := unix.Fadvise(int(file.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		return fmt.Errorf("drop %s from memory: %w", f.served, err)
	}
	return nil
}

// LogPath is the file with the record.
func (f *Faulty) LogPath() string { return f.log }

// LogSize is how many bytes the record has. What completed before the call is in it.
func (f *Faulty) LogSize() (int64, error) {
	info, err := os.Stat(f.log)
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

// Close takes the disk away, with what is mounted from it. The record stays until the rig's
// directory is removed.
func (f *Faulty) Close() error {
	if f.closed {
		return nil
	}
	f.closed = true
	var errs []error
	if f.loop.device != "" {
		errs = append(errs, f.loop.detach())
	}
	if f.qmp != nil {
		f.qmp.Close()
	}
	if f.daemon != nil {
		_ = f.daemon.Process.Signal(unix.SIGTERM) // it may have ended already
		select {
		case <-f.exited:
		case <-time.After(goneWithin):
			_ = f.daemon.Process.Kill()
			<-f.exited
			errs = append(errs, errors.New("qemu-storage-daemon didn't end when asked to"))
		}
	}
	errs = append(errs, unserve(f.served))
	return errors.Join(errs...)
}

// servedOf returns the files whose names begin so on which something is mounted.
func servedOf(filePrefix string) ([]string, error) {
	text, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return nil, err
	}
	var files []string
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) > 2 && strings.HasPrefix(f[2], "fuse") {
			if at := unescape(f[1]); strings.HasPrefix(filepath.Base(at), filePrefix) {
				files = append(files, at)
			}
		}
	}
	return files, nil
}

// unserve removes a file on which something may still be mounted, and those beside it; the record
// stays.
func unserve(file string) error {
	if err := unix.Unmount(file, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) &&
		!errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("unmount %s: %w", file, err)
	}
	var errs []error
	for _, name := range []string{file, file + ".base", file + ".qmp"} {
		if err := os.Remove(name); !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

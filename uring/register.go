package uring

import (
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"unsafe"

	sys "github.com/iceber/iouring-go/syscall"
	"golang.org/x/sys/unix"
)

// maxRegistered is the most bytes of one registered buffer: a limit of the kernel.
const maxRegistered = 1 << 30

// RegisterBuffers pins mem and registers it, in pieces of 1 GiB, as fixed buffers 0, 1, and so on.
func (r *Ring) RegisterBuffers(mem []byte) error {
	var iov []unix.Iovec
	for len(mem) > 0 {
		n := min(len(mem), maxRegistered)
		iov = append(iov, unix.Iovec{Base: &mem[0], Len: uint64(n)})
		mem = mem[n:]
	}
	return sys.IOURingRegister(r.fd, sys.IORING_REGISTER_BUFFERS,
		unsafe.Pointer(&iov[0]), uint32(len(iov)))
}

// registerPool registers a pool's arena. Without it everything works, only a little slower, so a
// refusal is said and survived.
func registerPool(r *Ring, p *Pool, log *slog.Logger) bool {
	err := r.RegisterBuffers(p.Arena())
	if err == nil {
		return true
	}
	args := []any{"bytes", len(p.Arena()), "error", err}
	if errors.Is(err, unix.ENOMEM) || errors.Is(err, unix.EPERM) {
		var lim unix.Rlimit
		if unix.Getrlimit(unix.RLIMIT_MEMLOCK, &lim) == nil {
			args = append(args, "RLIMIT_MEMLOCK", lim.Cur)
		}
		args = append(args, "do", "set LimitMEMLOCK=infinity in the systemd unit, or ulimit -l")
	}
	log.Warn("buffers can't be registered with io_uring; going on without", args...)
	return false
}

// fileTable is the ring's table of registered files.
type fileTable struct {
	r    *Ring
	free []int32
}

// maxFiles is the size of the table; what doesn't fit is used by its file descriptor.
const maxFiles = 4096

// init registers an empty table.
func (t *fileTable) init(r *Ring) error {
	fds := make([]int32, maxFiles)
	for i := range fds {
		fds[i] = -1
	}
	err := sys.IOURingRegister(r.fd, sys.IORING_REGISTER_FILES, unsafe.Pointer(&fds[0]), maxFiles)
	if err != nil {
		return fmt.Errorf("register a table of files: %w", err)
	}
	t.r = r
	t.free = make([]int32, maxFiles)
	for i := range t.free {
		t.free[i] = int32(maxFiles - 1 - i)
	}
	return nil
}

// add registers fd if it can and returns how to name it in operations.
func (t *fileTable) add(fd int) File {
	if len(t.free) == 0 {
		return FD(fd)
	}
	i := t.free[len(t.free)-1]
	if t.update(i, int32(fd)) != nil {
		return FD(fd)
	}
	t.free = t.free[:len(t.free)-1]
	return File{fd: int32(fd), index: i}
}

// remove takes f out of the table. Operations in flight keep it open.
func (t *fileTable) remove(f File) {
	if f.index < 0 {
		return
	}
	if err := t.update(f.index, -1); err != nil {
		panic(fmt.Sprintf("uring: take registered file %d away: %v", f.index, err))
	}
	t.free = append(t.free, f.index)
}

func (t *fileTable) update(index, fd int32) error {
	// struct io_uring_files_update
	u := struct {
		offset, _ uint32
		fds       uint64
	}{offset: uint32(index), fds: uint64(uintptr(unsafe.Pointer(&t.r.wait.fd)))}
	t.r.wait.fd = fd
	return sys.IOURingRegister(t.r.fd, sys.IORING_REGISTER_FILES_UPDATE, unsafe.Pointer(&u), 1)
}

// BufRing is a ring of buffers that the kernel picks from when data arrives (Linux 5.19).
type BufRing struct {
	r     *Ring
	group uint16
	size  int
	mem   []byte // entries, then nothing
	data  []byte
	ents  []bufRingEntry
	tail  uint16
}

// bufRingEntry is struct io_uring_buf. The ring's tail lies in resv of the first one.
type bufRingEntry struct {
	addr uint64
	n    uint32
	id   uint16
	resv uint16
}

// NewBufRing registers count (a power of two, <= 32768) buffers of size bytes as a group.
func NewBufRing(r *Ring, group uint16, count, size int) (*BufRing, error) {
	if !r.ops.has519 {
		return nil, errors.New("provided buffer rings need Linux 5.19 or newer")
	}
	b := &BufRing{r: r, group: group, size: size}
	b.mem = mustMap(count * int(unsafe.Sizeof(bufRingEntry{})))
	b.data = mustMap(count * size)
	b.ents = unsafe.Slice((*bufRingEntry)(unsafe.Pointer(&b.mem[0])), count)
	reg := struct {
		addr    uint64
		entries uint32
		group   uint16
		flags   uint16
		_       [3]uint64
	}{addr: uint64(addrOf(b.mem)), entries: uint32(count), group: group}
	if err := sys.IOURingRegister(r.fd, registerPbufRing, unsafe.Pointer(&reg), 1); err != nil {
		_ = unix.Munmap(b.mem)
		_ = unix.Munmap(b.data)
		return nil, fmt.Errorf("register a buffer ring: %w", err)
	}
	for id := range count {
		b.Put(uint16(id))
	}
	return b, nil
}

// Bytes is the memory of buffer id.
func (b *BufRing) Bytes(id uint16) []byte {
	return b.data[int(id)*b.size : (int(id)+1)*b.size : (int(id)+1)*b.size]
}

// Put gives buffer id back to the kernel.
func (b *BufRing) Put(id uint16) {
	e := &b.ents[int(b.tail)&(len(b.ents)-1)]
	e.addr, e.n, e.id = uint64(addrOf(b.Bytes(id))), uint32(b.size), id
	b.tail++
	// The tail shares a word with the id of entry 0: publish both with one ordered store.
	word := (*uint32)(unsafe.Pointer(&b.ents[0].id))
	atomic.StoreUint32(word, uint32(b.ents[0].id)|uint32(b.tail)<<16)
}

// Close takes the group away. No operation may use it.
func (b *BufRing) Close() error {
	reg := struct {
		_     uint64
		_     uint32
		group uint16
		_     uint16
		_     [3]uint64
	}{group: b.group}
	err := sys.IOURingRegister(b.r.fd, unregisterPbufRing, unsafe.Pointer(&reg), 1)
	_ = unix.Munmap(b.mem)
	_ = unix.Munmap(b.data)
	return err
}

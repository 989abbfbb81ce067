package chunk

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// deviceHead is how much of a block device must be zeros before it may become a journal: all
// known file systems, partition tables and volume managers leave their marks in it, and so does a
// journal.
const deviceHead = 1 << 20

// deviceWait is for how long somebody else's lock of a device is waited for: programs that look at
// what a device holds take one for a moment.
const deviceWait = 5 * time.Second

// logPlace is where a new log goes: a file that was made for it, or an empty device. While it is
// open no other process can make one there.
type logPlace struct {
	path   string
	f      *os.File
	device bool
	log    *slog.Logger
}

// claimLog makes a file, which must not be there yet, or takes an empty device.
func claimLog(path string, log *slog.Logger) (*logPlace, error) {
	if log == nil {
		log = slog.Default()
	}
	p := &logPlace{path: path, log: log}
	if p.device = isDevice(path); p.device {
		f, err := openDevice(path)
		if err != nil {
			return nil, fmt.Errorf("use device %s as journal: %w", path, err)
		}
		p.f = f
		if err := p.check(); err != nil {
			f.Close()
			return nil, err
		}
		return p, nil
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, os.ErrExist) {
		err = errors.New("a file is there already")
	}
	if err != nil {
		return nil, err
	}
	p.f = f
	return p, nil
}

// check says whether a device is still empty, and nobody writes to it: programs that don't ask for
// it alone can.
func (p *logPlace) check() error {
	if !p.device {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), deviceWait)
	defer cancel()
	err := awaitWrites(ctx, p.path, p.log)
	switch {
	case ctx.Err() != nil && err != nil:
		err = errors.New("another process uses it")
	case err == nil:
		err = emptyHead(p.f)
	}
	if err != nil {
		return fmt.Errorf("use device %s as journal: %w", p.path, err)
	}
	return nil
}

func (p *logPlace) close() {
	if p != nil {
		p.f.Close()
	}
}

// CheckDevice returns an error if a block device can't become a journal: it is in use, or has
// something on it.
func CheckDevice(path string) error {
	f, err := openDevice(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return emptyHead(f)
}

// openDevice opens a block device for nobody else who asks for that. It fails while the device is
// mounted, or part of a volume.
func openDevice(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_EXCL, 0)
	if errors.Is(err, unix.EBUSY) {
		return nil, errors.New("it is in use")
	}
	return f, err
}

func emptyHead(f *os.File) error {
	head := make([]byte, deviceHead)
	n, err := f.ReadAt(head, 0)
	if err != nil && err != io.EOF {
		return err
	}
	if !isZero(head[:n]) {
		return errors.New("it isn't empty")
	}
	return nil
}

func isDevice(path string) bool {
	info, err := os.Stat(path)
	const kind = os.ModeDevice | os.ModeCharDevice
	return err == nil && info.Mode()&kind == os.ModeDevice
}

package mds

import (
	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

// usage is what is below a directory. It is derived: kept by every command that links, unlinks or
// resizes a file, and counted again when a snapshot is restored.
type usage struct {
	files  uint64 // and symbolic links
	dirs   uint64
	bytes  uint64 // sizes of the files
	chunks uint64 // that they have
}

// add adds what may be negative, in two's complement.
func (u *usage) add(d usage) {
	u.files += d.files
	u.dirs += d.dirs
	u.bytes += d.bytes
	u.chunks += d.chunks
}

func (u usage) negated() usage {
	return usage{-u.files, -u.dirs, -u.bytes, -u.chunks}
}

// own is what a file alone adds to the directory that it is in.
func (f *file) own() usage {
	switch f.typ {
	case control.TypeDir:
		return usage{dirs: 1}
	case control.TypeFile:
		return usage{files: 1, bytes: f.size, chunks: uint64(f.chunks)}
	}
	return usage{files: 1}
}

// whole is own with everything below a directory.
func (f *file) whole() usage {
	u := f.own()
	if f.typ == control.TypeDir {
		u.add(f.dir.below)
	}
	return u
}

// account adds to a directory and all above it. 0, the parent of a file without a name, has none.
func (s *State) account(dir dataplane.FileID, d usage) {
	for dir != 0 {
		f := s.files.get(dir)
		f.dir.below.add(d)
		dir = f.parent
	}
}

// recount accounts for a file that was resized, and was that much before.
func (s *State) recount(id dataplane.FileID, before usage) {
	f := s.files.get(id)
	d := f.own()
	d.add(before.negated())
	s.account(f.parent, d)
}

// belowStep is how many files setPolicyBelow changes at once.
const belowStep = 256

// setPolicyBelow changes the policy of everything below a directory as args says. What is created,
// moved or removed meanwhile may be met or not.
func (c *call) setPolicyBelow(dir dataplane.FileID, args *control.SetAttrArgs) error {
	todo := []dataplane.FileID{dir}
	for len(todo) > 0 {
		id, after := todo[len(todo)-1], ""
		todo = todo[:len(todo)-1]
		for more := true; more; {
			var batch []*cmdSetAttr
			var err error
			batch, after, err = c.policiesIn(id, after, args, &todo)
			if err != nil {
				return err
			}
			if err := c.changeAll(batch); err != nil {
				return err
			}
			more = after != ""
		}
	}
	return nil
}

// policiesIn makes the commands for some entries of a directory, behind the name after. last is
// the last of them, "" at the end. Directories go to todo.
func (c *call) policiesIn(dir dataplane.FileID, after string, args *control.SetAttrArgs,
	todo *[]dataplane.FileID) (batch []*cmdSetAttr, last string, err error) {
	fsm := c.r.fsm
	fsm.mu.RLock()
	defer fsm.mu.RUnlock()
	d := fsm.s.live(dir)
	if d == nil || d.typ != control.TypeDir {
		return nil, "", nil // removed meanwhile
	}
	d.dir.after(after, func(e *dirEntry) bool {
		f := fsm.s.files.get(e.id)
		if f.typ == control.TypeDir {
			*todo = append(*todo, f.id)
		}
		var p control.Policy
		if p, err = changePolicy(f.policy, args); err == nil && f.typ != control.TypeSymlink {
			batch = append(batch, &cmdSetAttr{SetAttrReq: control.SetAttrReq{File: f.id,
				Mask: control.SetPolicy, Policy: p}})
		}
		if err != nil || len(batch) == belowStep {
			last = e.name
			return false
		}
		return true
	})
	return batch, last, err
}

// changeAll sends commands through the log together. A file that is gone meanwhile is no error.
func (c *call) changeAll(batch []*cmdSetAttr) error {
	errs := make(chan error, len(batch))
	for _, cmd := range batch {
		one := func() { _, err := c.change(cmd); errs <- err }
		if c.r.sim != nil {
			one()
		} else {
			go one()
		}
	}
	var failed error
	for range batch {
		if err := <-errs; err != nil && dataplane.KindOf(err) != dataplane.NotFound {
			failed = err
		}
	}
	return failed
}

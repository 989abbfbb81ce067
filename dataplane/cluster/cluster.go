package cluster

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"pstorage/dataplane"
)

// DefaultEtc is where a node's configuration is unless PSTORAGE_ETC says otherwise.
const DefaultEtc = "/etc/pstorage"

// EtcEnv is the environment variable that replaces DefaultEtc.
const EtcEnv = "PSTORAGE_ETC"

// MaxName is the most bytes in a cluster's name.
const MaxName = 63

// EtcDir returns the node's configuration directory: $PSTORAGE_ETC, or /etc/pstorage.
func EtcDir() string {
	if dir := os.Getenv(EtcEnv); dir != "" {
		return dir
	}
	return DefaultEtc
}

// CheckName says what is wrong with a cluster's name, if anything (Invalid).
func CheckName(name string) error {
	op := fmt.Sprintf("cluster name %q", name)
	switch {
	case name == "":
		return dataplane.E("cluster name", dataplane.Invalid, errors.New("it is empty"))
	case len(name) > MaxName:
		return dataplane.E("cluster name", dataplane.Invalid,
			fmt.Errorf("%d characters, at most %d are allowed", len(name), MaxName))
	case name[0] == '-':
		return dataplane.E(op, dataplane.Invalid, errors.New(`it may not begin with "-"`))
	}
	for _, c := range name {
		if !nameChar(c) {
			return dataplane.E(op, dataplane.Invalid,
				errors.New("only letters, digits, _ and - are allowed"))
		}
	}
	return nil
}

func nameChar(c rune) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_' || c == '-'
}

// Conf is the configuration directory of one cluster on this node. It caches nothing.
type Conf struct {
	name string
	path string
}

// At returns the configuration of the cluster called name under etc, whether it exists or not.
func At(etc, name string) (*Conf, error) {
	if err := CheckName(name); err != nil {
		return nil, err
	}
	path, err := filepath.Abs(filepath.Join(etc, "clusters", name))
	if err != nil {
		return nil, dataplane.E("configuration of cluster "+name, dataplane.IOError, err)
	}
	return &Conf{name: name, path: path}, nil
}

// List returns the names of the clusters that have a key on this node, in alphabetical order.
func List(etc string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(etc, "clusters"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, dataplane.E("list the local clusters", dataplane.IOError, err)
	}
	var names []string
	for _, entry := range entries {
		conf, err := At(etc, entry.Name())
		if err == nil && conf.HasKey() {
			names = append(names, entry.Name())
		}
	}
	return names, nil
}

// Choose returns the configuration of the cluster called name, which must have a key on this
// node. An empty name stands for the only cluster there is. NotFound: none; Invalid: a bad name,
// or several clusters and no name.
func Choose(etc, name string) (*Conf, error) {
	if name != "" {
		conf, err := At(etc, name)
		if err != nil {
			return nil, err
		}
		if !conf.HasKey() {
			return nil, dataplane.E("cluster "+name, dataplane.NotFound,
				fmt.Errorf("this node has no key for it (%s)", conf.KeyPath()))
		}
		return conf, nil
	}
	names, err := List(etc)
	if err != nil {
		return nil, err
	}
	switch len(names) {
	case 0:
		return nil, dataplane.E("choose a cluster", dataplane.NotFound,
			fmt.Errorf("this node belongs to none (looked in %s)", filepath.Join(etc, "clusters")))
	case 1:
		return At(etc, names[0])
	}
	return nil, dataplane.E("choose a cluster", dataplane.Invalid,
		fmt.Errorf("this node belongs to several: %s", strings.Join(names, ", ")))
}

// Name returns the cluster's name.
func (c *Conf) Name() string { return c.name }

// Path returns the cluster's configuration directory, absolute.
func (c *Conf) Path() string { return c.path }

// KeyPath returns the path of the key file.
func (c *Conf) KeyPath() string { return filepath.Join(c.path, "auth.key") }

// HasKey says whether there is a key file, readable or not.
func (c *Conf) HasKey() bool {
	_, err := os.Lstat(c.KeyPath())
	return err == nil
}

// Restorer remembers the files that a new cluster on this node begins with, as they are now, and
// returns what puts them back: those that aren't there yet are removed then, and so is the
// directory, if it isn't there either and nobody else put something in it.
func (c *Conf) Restorer() (restore func() error, err error) {
	fail := func(err error) error {
		return dataplane.E("look at "+c.path, dataplane.IOError, err)
	}
	_, err = os.Lstat(c.path)
	hadDir := err == nil
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fail(err)
	}
	type file struct {
		name string
		text []byte
		mode fs.FileMode // 0: it isn't there
	}
	files := []file{{name: "auth.key"}, {name: "bs.list"}, {name: "mds.list"}}
	for i := range files {
		f := &files[i]
		path := filepath.Join(c.path, f.name)
		info, err := os.Stat(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			f.mode = info.Mode().Perm()
			f.text, err = os.ReadFile(path)
		}
		if err != nil {
			return nil, fail(err)
		}
	}
	return func() error {
		var errs []error
		for _, f := range files {
			path := filepath.Join(c.path, f.name)
			now, err := os.ReadFile(path)
			switch {
			case f.mode == 0:
				err = os.Remove(path)
			case err != nil || !bytes.Equal(now, f.text):
				err = c.writeAtomic(f.name, f.text, f.mode)
			}
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, dataplane.E("put back "+path, dataplane.IOError, err))
			}
		}
		if !hadDir {
			os.Remove(c.path) // which fails if somebody else put something there
		}
		return errors.Join(errs...)
	}, nil
}

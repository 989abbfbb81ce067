package cluster

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"pstorage/dataplane"
	"pstorage/dataplane/session"
)

const (
	keyVersion  = "pstorage-key 1"
	maxKeyBytes = 4096 // of a key file; a valid one has fewer than 300
)

// AppendKey appends the text form of k to out. See the package comment for the format.
func AppendKey(out []byte, k session.NodeKey) []byte {
	start := len(out)
	out = fmt.Appendf(out, "%s\ncluster %x\nname %s\nkey %x\n",
		keyVersion, k.Cluster[:], k.ClusterName, k.Key[:])
	return fmt.Appendf(out, "crc32c %08x\n", dataplane.CRC(out[start:]))
}

// ParseKey decodes the text form of a key. Every error says what is wrong with the text.
func ParseKey(text []byte) (session.NodeKey, error) {
	var k session.NodeKey
	if len(text) > maxKeyBytes {
		return k, fmt.Errorf("larger than %d bytes", maxKeyBytes)
	}
	first, _, _ := bytes.Cut(text, []byte("\n"))
	if string(first) != keyVersion {
		if bytes.HasPrefix(first, []byte("pstorage-key ")) {
			return k, errors.New("made by a newer version of pstorage")
		}
		return k, errors.New("not a pstorage key")
	}
	at := bytes.LastIndex(text, []byte("\ncrc32c "))
	if at < 0 || !bytes.HasSuffix(text, []byte("\n")) {
		return k, errors.New("cut short: its last line is missing")
	}
	body := text[:at+1]
	want := fmt.Sprintf("crc32c %08x\n", dataplane.CRC(body))
	if string(text[at+1:]) != want {
		return k, errors.New("damaged: its checksum is wrong")
	}
	return parseKeyFields(body)
}

// parseKeyFields reads the lines between version and checksum: each field exactly once.
func parseKeyFields(body []byte) (session.NodeKey, error) {
	var k session.NodeKey
	seen := make(map[string]bool)
	lines := strings.Split(strings.TrimSuffix(string(body), "\n"), "\n")
	for _, line := range lines[1:] {
		field, value, _ := strings.Cut(line, " ")
		if seen[field] {
			return session.NodeKey{}, fmt.Errorf("the field %q is there twice", field)
		}
		seen[field] = true
		var err error
		switch field {
		case "cluster":
			err = hexExactly(k.Cluster[:], value)
		case "name":
			k.ClusterName, err = value, CheckName(value)
		case "key":
			err = hexExactly(k.Key[:], value)
		default:
			err = errors.New("unknown field")
		}
		if err != nil {
			return session.NodeKey{}, fmt.Errorf("the field %q: %w", field, err)
		}
	}
	for _, field := range []string{"cluster", "name", "key"} {
		if !seen[field] {
			return session.NodeKey{}, fmt.Errorf("the field %q is missing", field)
		}
	}
	return k, nil
}

func hexExactly(out []byte, text string) error {
	if len(text) != 2*len(out) {
		return fmt.Errorf("must be %d hexadecimal digits", 2*len(out))
	}
	_, err := hex.Decode(out, []byte(text))
	if err != nil {
		return errors.New("not hexadecimal")
	}
	return nil
}

// LoadKey reads the node's key. Denied: others than its owner can read the file, or we can't;
// NotFound: there is none; Malformed: it is damaged; WrongCluster: it belongs to another one.
func (c *Conf) LoadKey() (session.NodeKey, error) {
	op := "read the key " + c.KeyPath()
	f, err := os.Open(c.KeyPath())
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return session.NodeKey{}, dataplane.E(op, dataplane.NotFound, errors.New("this node has no key"))
	case errors.Is(err, fs.ErrPermission):
		return session.NodeKey{}, dataplane.E(op, dataplane.Denied,
			errors.New("only its owner may read it"))
	case err != nil:
		return session.NodeKey{}, dataplane.E(op, dataplane.IOError, err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return session.NodeKey{}, dataplane.E(op, dataplane.IOError, err)
	}
	if !info.Mode().IsRegular() {
		return session.NodeKey{}, dataplane.E(op, dataplane.Malformed, errors.New("not a file"))
	}
	if info.Mode().Perm()&0o077 != 0 {
		return session.NodeKey{}, dataplane.E(op, dataplane.Denied, fmt.Errorf(
			"others can read it (mode %04o): chmod 600 it, or make a new key if it may be known",
			info.Mode().Perm()))
	}
	text, err := io.ReadAll(io.LimitReader(f, maxKeyBytes+1))
	if err != nil {
		return session.NodeKey{}, dataplane.E(op, dataplane.IOError, err)
	}
	k, err := ParseKey(text)
	if err != nil {
		return session.NodeKey{}, dataplane.E(op, dataplane.Malformed, err)
	}
	if k.ClusterName != c.name {
		return session.NodeKey{}, dataplane.E(op, dataplane.WrongCluster,
			fmt.Errorf("it is the key of cluster %s", k.ClusterName))
	}
	return k, nil
}

// SaveKey stores the node's key, mode 0600, in place of any other.
func (c *Conf) SaveKey(k session.NodeKey) error {
	if k.ClusterName != c.name {
		return dataplane.E("write "+c.KeyPath(), dataplane.WrongCluster,
			fmt.Errorf("the key belongs to cluster %s", k.ClusterName))
	}
	return c.writeAtomic("auth.key", AppendKey(nil, k), 0o600)
}

// Credentials returns what this node proves itself with in the given role. id is the daemon's;
// zero stands for a random one.
func (c *Conf) Credentials(role dataplane.Role, id uint64) (session.Credentials, error) {
	k, err := c.LoadKey()
	if err != nil {
		return session.Credentials{}, err
	}
	for id == 0 {
		var b [8]byte
		rand.Read(b[:]) // never fails
		id = binary.LittleEndian.Uint64(b[:])
	}
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	return session.Credentials{Cluster: k.Cluster, ClusterName: k.ClusterName, Key: k.Key,
		Role: role, ID: id, Name: host}, nil
}

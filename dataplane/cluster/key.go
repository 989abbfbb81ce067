package cluster

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"reflect"
	"strings"

	"pstorage/dataplane"
	"pstorage/dataplane/session"
)

const (
	keyVersion1 = "pstorage-key 1" // the cluster's key
	keyVersion2 = "pstorage-key 2" // keys and certificate
	maxKeyBytes = 1 << 20          // of a key file; nearly all of it can be revoked nodes
)

// AppendKey appends the text form of k to out. See the package comment for the format.
func AppendKey(out []byte, k session.NodeKey) []byte {
	start := len(out)
	version, name := keyVersion2, "keys"
	value, err := json.Marshal(&k.Keys)
	if err != nil {
		panic("cluster: encode keys: " + err.Error())
	}
	if g := k.Keys.Generations; len(g) == 1 && g[0].Number == 0 &&
		reflect.DeepEqual(k.Keys, session.LegacyKeys([32]byte(g[0].Key))) {
		version, name, value = keyVersion1, "key", fmt.Appendf(nil, "%x", g[0].Key[:])
	}
	out = fmt.Appendf(out, "%s\ncluster %x\nname %s\n%s %s\n", version, k.Cluster[:],
		k.ClusterName, name, value)
	return fmt.Appendf(out, "crc32c %08x\n", dataplane.CRC(out[start:]))
}

// ParseKey decodes the text form of a key. Every error says what is wrong with the text.
func ParseKey(text []byte) (session.NodeKey, error) {
	var k session.NodeKey
	if len(text) > maxKeyBytes {
		return k, fmt.Errorf("larger than %d bytes", maxKeyBytes)
	}
	first, _, _ := bytes.Cut(text, []byte("\n"))
	if string(first) != keyVersion1 && string(first) != keyVersion2 {
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
	want := "keys"
	if lines[0] == keyVersion1 {
		want = "key"
	}
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
		case want:
			if want == "keys" {
				err = json.Unmarshal([]byte(value), &k.Keys)
				break
			}
			var key [32]byte
			err = hexExactly(key[:], value)
			k.Keys = session.LegacyKeys(key)
		default:
			err = errors.New("unknown field")
		}
		if err != nil {
			return session.NodeKey{}, fmt.Errorf("the field %q: %w", field, err)
		}
	}
	for _, field := range []string{"cluster", "name", want} {
		if !seen[field] {
			return session.NodeKey{}, fmt.Errorf("the field %q is missing", field)
		}
	}
	if err := k.Keys.Check(k.Cluster); err != nil {
		return session.NodeKey{}, err
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

// SaveKey stores the node's key, mode 0600, in place of any other. It waits for a process that is
// about to replace its keys there.
func (c *Conf) SaveKey(k session.NodeKey) error {
	return c.locked(func() error { return c.saveKey(k) })
}

func (c *Conf) saveKey(k session.NodeKey) error {
	if k.ClusterName != c.name {
		return dataplane.E("write "+c.KeyPath(), dataplane.WrongCluster,
			fmt.Errorf("the key belongs to cluster %s", k.ClusterName))
	}
	return c.writeAtomic("auth.key", AppendKey(nil, k), 0o600)
}

// keyFile is a Conf as a session.KeyFile, for a process that belongs to a cluster.
type keyFile struct {
	*Conf
	cluster dataplane.ClusterID
}

func (f keyFile) load() (session.NodeKey, error) {
	k, err := f.LoadKey()
	if err == nil && k.Cluster != f.cluster {
		err = dataplane.E("read the key "+f.KeyPath(), dataplane.WrongCluster, errors.New(
			"it is now the key of another cluster of this name: restart this node's processes"))
	}
	return k, err
}

// Load implements session.KeyFile.
func (f keyFile) Load() (*session.KeySet, error) {
	k, err := f.load()
	return &k.Keys, err
}

// Save implements session.KeyFile.
func (f keyFile) Save(keys *session.KeySet) error {
	k, err := f.load()
	if err != nil {
		return err // removed, or replaced by a person: theirs to decide
	}
	k.Keys = *keys
	return f.saveKey(k)
}

// Locked implements session.KeyFile.
func (f keyFile) Locked(g func() error) error { return f.locked(g) }

// Credentials returns what this node proves itself with in the given role. id is the daemon's;
// zero stands for a random one. The keys in it may be replaced later, here and in the file. A node
// that isn't an administrator's is a client instead. Denied: the node's key isn't good for the
// role.
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
	if cert := k.Keys.Certificate(); cert != nil {
		if role == dataplane.RoleAdmin && cert.Roles&session.RoleBit(role) == 0 {
			role = dataplane.RoleClient
		}
		if cert.Roles&session.RoleBit(role) == 0 {
			return session.Credentials{}, dataplane.E("act as "+role.String()+" of cluster "+c.name,
				dataplane.Denied, errors.New("this node's key isn't good for that: get one that is with "+
					"pstorage auth-node --role"))
		}
	}
	return session.Credentials{Cluster: k.Cluster, ClusterName: k.ClusterName,
		Ring: session.NewRing(&k.Keys, keyFile{c, k.Cluster}), Role: role, ID: id, Name: host}, nil
}

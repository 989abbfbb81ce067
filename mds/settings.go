package mds

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"pstorage/dataplane/control"
)

// settings are the entries of the cluster's configuration that the metadata servers act on.
type settings struct {
	version   uint64 // of the configuration they were read from; 0: not read
	rebalance bool
	perServer int
	total     int
	offline   time.Duration // 0: as the server was started
	limit     uint64        // bytes of user data; 0: none
}

// userKeys is how keys begin that mean nothing to the metadata servers.
const userKeys = "user."

// configKeys is the table of the keys and of what their values do.
var configKeys = map[string]func(s *settings, value string) error{
	control.ConfigRebalance: func(s *settings, value string) error {
		s.rebalance = value != "off"
		if value != "on" && value != "off" {
			return fmt.Errorf("%q is neither on nor off", value)
		}
		return nil
	},
	control.ConfigPerServer: func(s *settings, value string) (err error) {
		s.perServer, err = number(value, 1, 64)
		return err
	},
	control.ConfigTotal: func(s *settings, value string) (err error) {
		s.total, err = number(value, 1, 4096)
		return err
	},
	control.ConfigOffline: func(s *settings, value string) (err error) {
		s.offline, err = time.ParseDuration(value)
		if err == nil && (s.offline < time.Second || s.offline > 30*24*time.Hour) {
			err = fmt.Errorf("%v is not between 1s and 720h", s.offline)
		}
		return err
	},
	control.ConfigMode: func(s *settings, value string) error {
		if value != modeCRC && value != modeSecure {
			return fmt.Errorf("%q is neither %s nor %s", value, modeCRC, modeSecure)
		}
		return nil // see keysOf
	},
	control.ConfigLimit: func(s *settings, value string) (err error) {
		s.limit, err = parseSize(value)
		return err
	},
}

func number(value string, least, most int) (int, error) {
	n, err := strconv.Atoi(value)
	if err != nil || n < least || n > most {
		return least, fmt.Errorf("%q is not a number from %d to %d", value, least, most)
	}
	return n, nil
}

// parseSize reads "10T", "10TiB" or "123456": bytes, units of 1024.
func parseSize(text string) (uint64, error) {
	t := strings.TrimSuffix(strings.TrimSuffix(strings.ToUpper(text), "B"), "I")
	shift := 0
	if i := strings.IndexAny(t, "KMGTP"); i >= 0 && i == len(t)-1 {
		shift = 10 * (strings.IndexByte("KMGTP", t[i]) + 1)
		t = t[:i]
	}
	n, err := strconv.ParseUint(t, 10, 63-shift)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("%q is not a size such as 500G or 10T", text)
	}
	return n << shift, nil
}

// checkConfig says what is wrong with an entry of the configuration that somebody wants to set, or
// to remove, which an empty value means. there says whether the entry exists.
func checkConfig(key, value string, there bool) error {
	ours := strings.HasPrefix(key, keyPrefix) || key == lastNodeKey
	if strings.HasPrefix(key, userKeys) || value == "" && there && !ours {
		return nil // what another version set can be removed
	}
	set, ok := configKeys[key]
	if !ok {
		return fmt.Errorf("key %.80q is unknown; there are %s, and any that begins with %s", key,
			strings.Join(control.ConfigKeys, ", "), userKeys)
	}
	if value == "" {
		return nil
	}
	return set(new(settings), value)
}

// readSettings reads the configuration. What can't be read, because another version wrote it, is
// as if it weren't there.
func readSettings(config []configEntry, version uint64) settings {
	s := settings{version: version, rebalance: true, perServer: recoverPerCS, total: maxRecoveries}
	for _, e := range config {
		if set := configKeys[e.key]; set != nil {
			if t := s; set(&t, e.value) == nil {
				s = t
			}
		}
	}
	return s
}

// configure takes the configuration over when it has changed. Both locks are held.
func (l *leader) configure(s *State) {
	if l.conf.version == s.configVer && l.conf.perServer != 0 {
		return
	}
	l.conf = readSettings(s.config, s.configVer)
	l.recover.limits = recoverLimits{perCS: l.conf.perServer, total: l.conf.total}
	l.recover.offline = l.r.offlineTimeout()
	if l.conf.offline != 0 {
		l.recover.offline = l.conf.offline
	}
	if l.move.balance.paused == l.conf.rebalance {
		l.move.balance.paused = !l.conf.rebalance
		l.move.wake()
	}
}

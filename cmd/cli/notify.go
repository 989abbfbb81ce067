package cli

import (
	"net"
	"os"
)

// Notify tells the service manager about this process's state, for example "READY=1", by the
// protocol of sd_notify(3). Without a service manager (NOTIFY_SOCKET isn't set) it does nothing.
func Notify(state string) error {
	socket := os.Getenv("NOTIFY_SOCKET")
	if socket == "" {
		return nil
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = conn.Write([]byte(state))
	return err
}

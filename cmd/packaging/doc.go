// Package packaging holds what an installation needs besides the programs: units of systemd, rules
// and a dashboard for monitoring, manual pages of files, and the script that makes Debian packages
// (make deb). It has tests only.
package packaging

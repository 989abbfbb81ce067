package cli

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

const sizeUnits = "KMGTPE" // powers of 1024

// Size is a flag value in bytes: "256M", "1.5G", "4096", "10GiB".
type Size uint64

// Set parses text. It is of pflag.Value.
func (s *Size) Set(text string) error {
	number := strings.ToUpper(strings.TrimSpace(text))
	number = strings.TrimSuffix(strings.TrimSuffix(number, "B"), "I")
	shift := 0
	if n := len(number); n > 0 {
		if at := strings.IndexByte(sizeUnits, number[n-1]); at >= 0 {
			shift, number = 10*(at+1), number[:n-1]
		}
	}
	bad := fmt.Errorf("%q isn't a size like 4096, 256M, 1.5G or 2T", text)
	if strings.ContainsAny(number, "+-_EXPINFNA ") || number == "" {
		return bad
	}
	if whole, err := strconv.ParseUint(number, 10, 64); err == nil {
		if whole > math.MaxUint64>>shift {
			return fmt.Errorf("%q is too large", text)
		}
		*s = Size(whole << shift)
		return nil
	}
	f, err := strconv.ParseFloat(number, 64)
	if err != nil {
		return bad
	}
	if f = f * float64(uint64(1)<<shift); f >= math.MaxInt64 {
		return fmt.Errorf("%q is too large", text)
	}
	*s = Size(f)
	return nil
}

// Type names the value in help texts. It is of pflag.Value.
func (s *Size) Type() string { return "size" }

// String returns the size so that Set reads it back: exact. It is of pflag.Value.
func (s *Size) String() string {
	v, unit := uint64(*s), ""
	for i := 0; i < len(sizeUnits) && v != 0 && v%1024 == 0; i++ {
		v, unit = v/1024, sizeUnits[i:i+1]
	}
	return strconv.FormatUint(v, 10) + unit
}

// Bytes returns n for people, rounded: "1.5 GiB".
func Bytes(n uint64) string {
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	v, unit := float64(n)/1024, 0
	for v >= 1023.95 && unit < len(sizeUnits)-1 {
		v, unit = v/1024, unit+1
	}
	return fmt.Sprintf("%.1f %ciB", v, sizeUnits[unit])
}

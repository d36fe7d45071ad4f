package foldstream

// Level says how much a message matters.
type level uint8

const (
	levelDebug level = iota
	levelInfo
	levelWarn
	levelError
)

// Debug writes details for finding an error to the host's log, under the deployment's name. The
// host keeps at most 4,096 bytes of a message. In tests messages go to standard error.
func Debug(message string) { writeLog(levelDebug, inUTF8(message)) }

// Info writes a normal event worth knowing to the host's log.
func Info(message string) { writeLog(levelInfo, inUTF8(message)) }

// Warn writes something that a person should check to the host's log.
func Warn(message string) { writeLog(levelWarn, inUTF8(message)) }

// Error writes what went wrong to the host's log.
func Error(message string) { writeLog(levelError, inUTF8(message)) }

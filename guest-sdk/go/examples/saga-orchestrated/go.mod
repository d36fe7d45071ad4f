module saga-orchestrated

go 1.24

require foldstream v0.0.0

replace foldstream => ../../foldstream

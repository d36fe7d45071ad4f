module foldstream

go 1.24

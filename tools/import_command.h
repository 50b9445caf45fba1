/* trikv-calibrate import: published statistics become a profile. */
#ifndef TKV_TOOLS_IMPORT_COMMAND_H
#define TKV_TOOLS_IMPORT_COMMAND_H

/* argv[0] is the program, argv[1] "import". Returns the exit status. */
int tkv_import_command(int argc, char **argv);

#endif /* TKV_TOOLS_IMPORT_COMMAND_H */

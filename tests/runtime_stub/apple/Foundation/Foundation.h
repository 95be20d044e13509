/* What the Metal driver uses of Foundation, as Apple declares it, for a compiler without Apple's headers;
 * variables are those of fake_metal.m. */
#ifndef FOUNDATION_H
#define FOUNDATION_H
#include <stddef.h>
#include <stdint.h>

#ifndef TARGET_OS_OSX
#define TARGET_OS_OSX 1
#endif

typedef signed char BOOL;
#define YES ((BOOL)1)
#define NO ((BOOL)0)
#define nil ((id)0)
typedef unsigned long NSUInteger;
typedef double CFTimeInterval;

@protocol NSObject
#if !__has_feature(objc_arc)
- (id)retain;
- (void)release;
#endif
@end

__attribute__((objc_root_class))
@interface NSObject <NSObject> {
    Class isa;
    long references;
}
+ (instancetype)alloc;
+ (instancetype)new;
- (instancetype)init;
#if !__has_feature(objc_arc)
- (id)retain;
- (void)release;
- (id)autorelease;
- (void)dealloc;
#endif
@end

@interface NSString : NSObject {
    char *text;
}
+ (instancetype)stringWithUTF8String:(const char *)text;
- (const char *)UTF8String;
@end

@interface NSError : NSObject {
    const char *words;
}
- (NSString *)localizedDescription;
@end

@interface NSURL : NSObject {
@public
    char path[512];
}
+ (NSURL *)fileURLWithPath:(NSString *)path;
@end

@interface NSArray<Member> : NSObject {
    id member;
}
+ (instancetype)arrayWithObject:(Member)object;
- (NSUInteger)count;
- (Member)objectAtIndex:(NSUInteger)index;
@end
#endif
